"""How the transfer's radius and ridge were chosen (``make benchmark-transfer``).

The look is the true fused target of each demo photograph, shrunk to the model's size, so that the network plays no
part: what is lost is lost by the transfer. For each setting: PSNR at full size against the full-size target, and the
energy of fine detail (differences of neighbours along rows) as a part of the target's, each the mean over the
photographs. One is ideal for the detail. Enlarging the shrunk target is the floor to beat.

These are the same photographs as in the README's served table, so that table is not a test of this choice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from export.metrics import psnr
from imaging import Frame
from imaging import transfer as carried

module = sys.modules["imaging.transfer"]  # the package exports a function of the same name
RADII, RIDGES = (2, 4, 8), (1e-4, 3e-4, 1e-3, 1e-2)


def shrunk(array: np.ndarray) -> np.ndarray:
    """The photograph at the model's size, hxwx3 float32 in [0, 1]."""
    frame = Frame.of(*array.shape[:2])
    small = Image.fromarray(array).resize((frame.width, frame.height), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def enlarged(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The shrunk picture back at full size, uint8."""
    picture = Image.fromarray(np.rint(small * 255).astype(np.uint8))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def detail(array: np.ndarray) -> float:
    """Mean squared difference of neighbours along rows."""
    return float(np.mean(np.diff(array.astype(np.float32), axis=1) ** 2))


def figures(results: list[np.ndarray], targets: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR and mean share of the target's detail."""
    pairs = list(zip(results, targets, strict=True))
    return {
        "psnr": float(np.mean([psnr(r / 255, t / 255) for r, t in pairs])),
        "detail": float(np.mean([detail(r) / detail(t) for r, t in pairs])),
    }


def main() -> None:
    names = sorted(path.name for path in Path("demo/targets").glob("*.jpg"))
    photos, targets = (
        [np.asarray(Image.open(f"demo/{kind}/{n}").convert("RGB")) for n in names] for kind in ("photos", "targets")
    )
    looks = [(shrunk(photo), shrunk(target)) for photo, target in zip(photos, targets, strict=True)]
    rows = {"enlarging": figures([enlarged(o, t.shape) for (_, o), t in zip(looks, targets, strict=True)], targets)}
    shipped = (module.RADIUS, module.EPSILON)
    for radius in RADII:
        for ridge in RIDGES:
            module.RADIUS, module.EPSILON = radius, ridge
            results = [carried(p, *look) for p, look in zip(photos, looks, strict=True)]
            mark = " (shipped)" if (radius, ridge) == shipped else ""
            rows[f"radius {radius}, ridge {ridge:g}{mark}"] = figures(results, targets)
    print(f"{'':<36} {'PSNR dB':>8} {'detail':>7}")
    for name, row in rows.items():
        print(f"{name:<36} {row['psnr']:8.2f} {row['detail']:7.2f}")
    print(json.dumps({"photographs": names, "settings": rows}))


if __name__ == "__main__":
    main()
