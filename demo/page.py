"""Write the demo's page: one HTML file without external resources, with a before/after slider for each photograph."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass

from PIL import Image, ImageOps
from tabulate import tabulate

#: Longer side in pixels and JPEG quality of the embedded pictures.
SCREEN_SIDE, SCREEN_QUALITY = 1600, 85
#: What is measured against a photograph's fused target (PSNR in dB), and its title on the page.
FIGURES = {"psnr_in": "PSNR before (dB)", "psnr_curve": "global curve", "psnr_out": "network, served"}

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; font: 1rem/1.5 system-ui, sans-serif; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #8884; font-weight: normal; }
figure { margin: 0; }
.pair { position: relative; display: inline-block; max-width: 100%; --cut: 50%; line-height: 0; }
.pair img { max-width: 100%; max-height: 82vh; }
.pair .before { position: absolute; inset: 0; width: 100%; height: 100%;
                clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.pair::after { content: ""; position: absolute; inset: 0 auto 0 var(--cut); width: 2px; background: #fff;
               pointer-events: none; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:focus-within { outline: 3px solid #3b82f6; }
"""


@dataclass(frozen=True, kw_only=True)
class PagePhotograph:
    """One photograph of the page; ``psnr`` has the values of `FIGURES`, or is empty without a target."""

    name: str
    before: bytes
    after: bytes
    pixels: str
    credit: str
    seconds: float
    psnr: dict[str, float]


def page_html(photographs: list[PagePhotograph], *, subtitle: str) -> str:
    """Return the HTML document."""
    titles = ["photograph", "pixels", "seconds", *FIGURES.values()]
    rows = [[p.name, p.pixels, p.seconds, *map(p.psnr.get, FIGURES)] for p in photographs]
    formats = ("", "", ".2f", ".1f", ".1f", ".1f")
    table = tabulate(rows, titles, tablefmt="html", floatfmt=formats, missingval="–", disable_numparse=[0])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>restormer-triton demo</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>restormer-triton: before and after</h1>"
        f"<p>{html.escape(subtitle)}</p>"
        "<p>The light in the sample photographs is synthetic (see demo/make_photos.py). "
        "Drag across a picture, or use the arrow keys: before on the left, after on the right.</p>"
        f"{table}{''.join(map(_figure, photographs))}</body></html>\n"
    )


def _figure(photograph: PagePhotograph) -> str:
    name = html.escape(photograph.name)
    return (
        f'<h2>{name}</h2><figure><div class="pair"><img src="{_data_url(photograph.after)}" alt="{name}, after">'
        f'<img class="before" src="{_data_url(photograph.before)}" alt="{name}, before">'
        f'<input type="range" min="0" max="100" value="50" step="0.5" aria-label="before/after of {name}" '
        "oninput=\"this.parentNode.style.setProperty('--cut', this.value + '%')\"></div>"
        f"<figcaption>{html.escape(photograph.credit)}</figcaption></figure>"
    )


def _data_url(photograph: bytes) -> str:
    """Return the photograph at screen size as a data URL."""
    with Image.open(io.BytesIO(photograph)) as image:
        image.draft("RGB", (SCREEN_SIDE, SCREEN_SIDE))
        picture = ImageOps.exif_transpose(image).convert("RGB")
    picture.thumbnail((SCREEN_SIDE, SCREEN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=SCREEN_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
