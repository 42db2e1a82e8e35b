"""Make demo/calibration: photographs of the training panoramas, for ranges and INT8 scales.

``python -m demo.make_calibration PANORAMAS`` renders two opposite views of each training panorama with the simulated
camera, their longer side 512 pixels: interiors and exteriors, by day and by night. Held-out scenes
(`demo.pairs.HELD_OUT`) and the photographs of demo/photos are not used.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from demo import camera
from demo.curve import Image
from demo.pairs import HELD_OUT, read_panoramas

FOLDER = Path(__file__).parent / "calibration"


def _fill_black_dots(panorama: Image) -> Image:
    """Fill the pixels below zero that resampling left around lamps and the sun; real photographs have none."""
    dark = (panorama <= 0).any(axis=-1, keepdims=True)
    return np.where(dark, cv2.dilate(panorama, np.ones((9, 9), np.uint8)).astype(np.float32), panorama)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("error: one argument is needed: python -m demo.make_calibration PANORAMAS")
    FOLDER.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for scene, panorama in read_panoramas(Path(sys.argv[1])).items():
        if scene in HELD_OUT:
            continue
        for turn, size in enumerate([(342, 512), (512, 342)]):
            radiance = camera.render_view(
                _fill_black_dots(panorama), yaw=30 + 180 * turn, pitch=0, field_of_view=75, size=size
            )
            pixels = camera.expose(radiance, camera.auto_exposure_gain(radiance), rng)
            name = FOLDER / f"{scene}-{turn + 1}.jpg"
            camera.pillow_from_unit(pixels).save(name, quality=90, subsampling=0)
            print(name)


if __name__ == "__main__":
    main()
