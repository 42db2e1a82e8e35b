"""The result type of `Enhancer.map`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Result(Generic[T]):
    """Outcome for one photograph: ``enhanced`` is an image file, or ``error`` the reason why there is none.

    ``index`` is the position in the input, from 0; ``photo`` the input itself; ``seconds`` the time it took.
    """

    index: int
    photo: T
    enhanced: bytes | None = None
    error: Exception | None = None
    seconds: float = 0.0

    def unwrap(self) -> bytes:
        """Return the image file, or raise ``error``."""
        if self.enhanced is None:
            raise self.error or ValueError("neither enhanced nor an error")
        return self.enhanced
