"""Training and test pairs for the demo network.

A pair is one exposure of a view of a panorama (input) and the exposure fusion of its bracket (target), both
HxWx3 float32, sRGB in [0, 1]. Scenes are never shared between training and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from demo import camera
from demo.camera import Image
from demo.curve import Pair

INTERIORS = ("apartment", "hall", "studio", "warehouse", "workshop")
#: Scenes the shipped network never saw.
HELD_OUT = ("hall", "workshop", "sunset")


def panoramas(folder: Path) -> dict[str, Image]:
    """All ``*.exr`` of a folder by scene name."""
    paths = sorted(folder.glob("*.exr"))
    if not paths:
        raise SystemExit(f"no *.exr panoramas in {folder}: python -m demo.fetch_panoramas {folder} brings them")
    return {path.stem: camera.radiance_from_exr(path) for path in paths}


def level_pairs(panorama: Image, seed: int = 0) -> list[Pair]:
    """Eight level views around the room, 90 degrees wide, 160x160: about the panoramas' own sharpness."""
    rng = np.random.default_rng(seed)
    views = (camera.view(panorama, yaw=yaw, pitch=0, field_of_view=90, size=(160, 160)) for yaw in range(0, 360, 45))
    return [_pair(radiance, rng) for radiance in views]


def training_pairs(panorama: Image, count: int, size: int, seed: int) -> list[Pair]:
    """Random views: any direction, 45 to 105 degrees wide, with white balance and contrast varied."""
    rng = np.random.default_rng(seed)
    return list(_random_pairs(panorama, count, size, rng))


def _random_pairs(panorama: Image, count: int, size: int, rng: np.random.Generator) -> Iterator[Pair]:
    for _ in range(count):
        radiance = camera.view(
            panorama,
            yaw=rng.uniform(0, 360),
            pitch=rng.normal(0, 15),
            field_of_view=rng.uniform(45, 105),
            size=(size, size),
        )
        balance = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
        yield _pair(radiance ** np.float32(rng.uniform(0.75, 1.25)) * balance, rng)


def _pair(radiance: Image, rng: np.random.Generator) -> Pair:
    gain = camera.auto_exposure(radiance)
    return camera.photograph(radiance, gain, rng), camera.fused(radiance, gain)
