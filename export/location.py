"""Where an engine is published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineLocation:
    """The engine file ``model/<version>/engine``."""

    model: Path
    version: int
    engine: str

    @property
    def path(self) -> Path:
        """The engine file."""
        return self.model / str(self.version) / self.engine
