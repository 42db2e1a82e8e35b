"""What `map` yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Result(Generic[T]):
    """One of many photographs: ``enhanced`` is an image file, or ``error`` says why there is none.

    ``index`` counts from 0 in the order they were given, ``photo`` is what was given, ``seconds`` how long it took.
    """

    index: int
    photo: T
    enhanced: bytes | None = None
    error: Exception | None = None
    seconds: float = 0.0

    def unwrap(self) -> bytes:
        """The image file; raises ``error`` if there is none."""
        if self.enhanced is None:
            raise self.error or ValueError("neither enhanced nor an error")
        return self.enhanced
