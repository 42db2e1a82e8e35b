"""Render training and test pairs for the demo network.

A pair is one exposure of a view of a panorama (input) and the exposure fusion of its bracket (target). A view is
rendered at its own aspect ratio and then stretched to a square, as the network's input always is. Training and test
share no scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from demo import camera
from demo.curve import Image, Pair

#: Scenes that the network is never trained on.
HELD_OUT = ("hall", "workshop", "sunset")
#: Width to height of the training views.
ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
#: The kinds of view that the network is measured on, and their width to height.
TEST_KINDS = {"square": (1, 1), "stretched 3:2": (3, 2)}
TEST_SIDE = 160  # 90 degrees in 160 pixels is about the resolution of the panoramas


def read_panoramas(folder: Path) -> dict[str, Image]:
    """Read all ``*.exr`` files of a folder, by scene name."""
    paths = sorted(folder.glob("*.exr"))
    if not paths:
        raise SystemExit(
            f"error: no *.exr panoramas in {folder}: python -m demo.fetch_panoramas {folder} downloads them"
        )
    return {path.stem: camera.radiance_from_exr(path) for path in paths}


def render_level_pairs(panorama: Image, aspect: tuple[int, int], seed: int = 0) -> list[Pair]:
    """Render eight level views around the room, their longer side 90 degrees wide, as squares of `TEST_SIDE`."""
    rng = np.random.default_rng(seed)
    yaws = range(0, 360, 45)
    return [_pair(_view(panorama, aspect, TEST_SIDE, yaw, 0, 90), TEST_SIDE, rng) for yaw in yaws]


def render_training_pairs(panorama: Image, count: int, side: int, rng: np.random.Generator) -> Iterator[Pair]:
    """Render random views: any aspect and direction, 45 to 105 degrees wide, white balance and contrast varied."""
    for _ in range(count):
        aspect = ASPECTS[rng.integers(len(ASPECTS))]
        radiance = _view(panorama, aspect, side, rng.uniform(0, 360), rng.normal(0, 15), rng.uniform(45, 105))
        balance = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
        yield _pair(radiance ** np.float32(rng.uniform(0.75, 1.25)) * balance, side, rng)


def _view(
    panorama: Image, aspect: tuple[int, int], shorter: int, yaw: float, pitch: float, field_of_view: float
) -> Image:
    """Render a view with a shorter side of ``shorter`` pixels; the field of view is that of the longer side."""
    width, height = (round(part * shorter / min(aspect)) for part in aspect)
    across = np.degrees(2 * np.arctan(np.tan(np.radians(field_of_view) / 2) * width / max(width, height)))
    return camera.render_view(panorama, yaw=yaw, pitch=pitch, field_of_view=float(across), size=(height, width))


def _pair(radiance: Image, side: int, rng: np.random.Generator) -> Pair:
    gain = camera.auto_exposure_gain(radiance)
    images = camera.expose(radiance, gain, rng), camera.fuse_bracket(radiance, gain)
    return camera.stretch(images[0], side), camera.stretch(images[1], side)
