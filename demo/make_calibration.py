"""Makes demo/calibration: photographs of the training panoramas, for ranges and INT8 scales.

``python -m demo.make_calibration PANORAMAS``. Two views of each panorama the network was trained on, opposite one
another, 512 pixels wide, as the simulated camera sees them: interiors and exteriors, daylight and night. None of the
scenes that figures are measured on (`demo.pairs.HELD_OUT`, and the photographs of demo/photos) is among them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as Picture

from demo import camera
from demo.camera import Image
from demo.pairs import HELD_OUT, panoramas

FOLDER = Path(__file__).parent / "calibration"


def _healed(panorama: Image) -> Image:
    """Around lamps and the sun the panoramas' own resampling rang below zero: black dots, which no photograph has."""
    dark = (panorama <= 0).any(axis=-1, keepdims=True)
    return np.where(dark, cv2.dilate(panorama, np.ones((9, 9), np.uint8)), panorama)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m demo.make_calibration PANORAMAS")
    FOLDER.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for scene, panorama in panoramas(Path(sys.argv[1])).items():
        if scene in HELD_OUT:
            continue
        for turn, size in enumerate([(342, 512), (512, 342)]):
            radiance = camera.view(_healed(panorama), yaw=30 + 180 * turn, pitch=0, field_of_view=75, size=size)
            pixels = camera.photograph(radiance, camera.auto_exposure(radiance), rng)
            name = FOLDER / f"{scene}-{turn + 1}.jpg"
            Picture.fromarray(np.round(pixels * 255).astype(np.uint8)).save(name, quality=90, subsampling=0)
            print(name)


if __name__ == "__main__":
    main()
