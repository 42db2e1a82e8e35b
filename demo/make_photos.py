"""Make the demo's photographs and their fused targets: dark around a bright window, at full resolution.

    python -m demo.make_photos SOURCES

SOURCES is a folder with the photographs below, from Debian's package ``lomiri-wallpapers-16.04``
(``/usr/share/backgrounds``; licences in its ``copyright``) and in scikit-image. The light is **synthetic**: the
photograph is linearized and multiplied by the light of a window (a soft bright region that falls off into a dark room);
the simulated camera of ``demo.camera`` then takes one exposure and fuses a bracket, at full size. None of these
photographs was used in training. ``test.jsonl`` lists them as the demo package's test set.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image as PillowImage

from demo import camera
from demo.curve import Image

DEMO = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Source:
    """A photograph, its author, and its synthetic window.

    ``window`` is (centre x, centre y, width, height) as fractions of the photograph; ``stops`` is how much brighter the
    window is than the far corner of the room; ``side`` limits the longer side in pixels (None: no limit).
    """

    name: str
    file: str
    credit: str
    window: tuple[float, float, float, float]
    stops: float
    side: int | None = None


SOURCES = (
    Source(name="reading-corner", file="Wine_by_Jakkub_Mede.jpg", credit="Jakub Mede, 2018, CC-BY-4.0",
           window=(0.22, 0.18, 0.5, 0.3), stops=5.0),
    Source(name="balcony", file="friends_by_Aitzol_Berasategi.jpg", credit="Aitzol Berasategi, 2018, CC-BY-4.0",
           window=(0.65, 0.25, 0.6, 0.45), stops=4.5),
    Source(name="valley-view", file="aitzgorri_by_Aitzol_Berasategi.jpg", credit="Aitzol Berasategi, 2018, CC-BY-4.0",
           window=(0.5, 0.22, 1.2, 0.4), stops=4.0, side=2048),
    Source(name="brook", file="life_by_Aitzol_Berasategi.jpg", credit="Aitzol Berasategi, 2018, CC-BY-4.0",
           window=(0.75, 0.3, 0.35, 0.5), stops=5.0, side=1600),
    Source(name="coffee-table", file="skimage:coffee", credit="Rachel Michetti, scikit-image, CC0-1.0",
           window=(0.15, 0.1, 0.5, 0.5), stops=4.5),
)  # fmt: skip


def read_source(source: Source, folder: Path) -> Image:
    """Read the photograph as HxWx3 float32, sRGB in [0, 1]."""
    if source.file.startswith("skimage:"):
        picture = PillowImage.fromarray(getattr(skimage.data, source.file.split(":")[1])())
    else:
        picture = PillowImage.open(folder / source.file).convert("RGB")
    if source.side:
        picture.thumbnail((source.side, source.side), PillowImage.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / np.float32(255)


def window_light(shape: tuple[int, int], window: tuple[float, float, float, float], stops: float) -> Image:
    """Return linear illumination, HxWx3: a bright window with soft edges, its glow, and a room ``stops`` darker."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width, y / height
    centre_x, centre_y, wide, high = window
    edge = 0.025
    inside = 1 / (1 + np.exp((np.abs(x - centre_x) - wide / 2) / edge))
    inside = inside * (1 / (1 + np.exp((np.abs(y - centre_y) - high / 2) / edge)))
    distance = np.hypot((x - centre_x) * width / height, y - centre_y)
    glow = np.exp(-2.2 * distance)
    light = 2.0**-stops + 0.22 * glow + inside
    # Daylight is bluer than the room's lamps.
    tint = inside[..., None] * np.array([0.96, 1.0, 1.06], np.float32) + (1 - inside[..., None]) * np.array(
        [1.06, 1.0, 0.9], np.float32
    )
    illumination: Image = (light[..., None] * tint).astype(np.float32)
    return illumination


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    sources = parser.parse_args().sources
    photos, targets = DEMO / "photos", DEMO / "targets"
    for folder in (photos, targets):
        folder.mkdir(parents=True, exist_ok=True)
    credits = {}
    for number, source in enumerate(SOURCES):
        original = read_source(source, sources)
        radiance = camera.linear_from_srgb(original) * window_light(original.shape[:2], source.window, source.stops)
        # Metered on a small version, so that noise does not count.
        small = cv2.resize(radiance, (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32)
        gain = camera.auto_exposure_gain(small)
        name, size = f"{source.name}.jpg", f"{original.shape[1]}x{original.shape[0]}"
        photo = camera.expose(radiance, gain, np.random.default_rng(number))
        for image, folder in ((photo, photos), (camera.fuse_bracket(radiance, gain), targets)):
            camera.pillow_from_unit(image).save(folder / name, quality=90, optimize=True)
        credits[name] = {"from": source.file, "by": source.credit, "pixels": size}
        print(f"{name}: {size}, gain {gain:.2f}")
    (DEMO / "CREDITS.json").write_text(json.dumps(credits, indent=2) + "\n", encoding="utf-8")
    lines = [json.dumps({"input": f"photos/{name}", "target": f"targets/{name}"}) + "\n" for name in sorted(credits)]
    (DEMO / "test.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
