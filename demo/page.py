"""Write the demo's page: one HTML file without external resources, with a before/after slider for each photograph."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass

from PIL import Image, ImageOps

#: Longer side in pixels and JPEG quality of the embedded pictures.
SCREEN_SIDE, SCREEN_QUALITY = 1600, 85

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fbfbf9; --line: #d9d9d4; --quiet: #6b6b70; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #161618; --line: #38383c; --quiet: #9a9aa0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p, figcaption { color: var(--quiet); margin: .25rem 0; }
figure { margin: 0; }
.pair { position: relative; display: inline-block; max-width: 100%; --cut: 50%; line-height: 0; overflow: hidden;
        border-radius: 6px; }
.pair img { display: block; max-width: 100%; max-height: 82vh; }
.pair .before { position: absolute; inset: 0; width: 100%; height: 100%;
                clip-path: inset(0 calc(100% - var(--cut)) 0 0); }
.pair::after { content: ""; position: absolute; inset: 0 auto 0 var(--cut); width: 2px; margin-left: -1px;
               background: #fff; box-shadow: 0 0 4px #0008; pointer-events: none; }
.pair span { position: absolute; top: .6rem; padding: .5rem .6rem; border-radius: 4px; background: #0008; color: #fff;
             font-size: .8rem; line-height: 1; pointer-events: none; }
.pair .left { left: .6rem; } .pair .right { right: .6rem; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:focus-within { outline: 3px solid #3b82f6; outline-offset: 2px; }
table { border-collapse: collapse; margin-top: .75rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; font-weight: normal; }
th { color: var(--quiet); } th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
"""


@dataclass(frozen=True, kw_only=True)
class PagePhotograph:
    """One photograph of the page. The PSNR figures (dB against the fused target) are None without a target."""

    name: str
    before: bytes
    after: bytes
    pixels: str
    credit: str
    seconds: float
    psnr_in: float | None = None
    psnr_curve: float | None = None
    psnr_out: float | None = None


def page_html(photographs: list[PagePhotograph], *, subtitle: str) -> str:
    """Return the HTML document."""
    rows = "".join(
        f"<tr><td>{html.escape(p.name)}</td><td>{p.pixels}</td><td>{p.seconds:.2f}</td>"
        f"<td>{_decibels(p.psnr_in)}</td><td>{_decibels(p.psnr_curve)}</td><td>{_decibels(p.psnr_out)}</td></tr>"
        for p in photographs
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>restormer-triton demo</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>restormer-triton: before and after</h1>"
        f"<p>{html.escape(subtitle)}</p>"
        "<p>The light in the sample photographs is synthetic (see demo/make_photos.py). "
        "Drag across a picture, or use the arrow keys.</p>"
        '<div class="scroll"><table><thead><tr><th>photograph</th><th>pixels</th><th>seconds</th>'
        "<th>PSNR before (dB)</th><th>global curve</th><th>network, served</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"{''.join(map(_figure, photographs))}</body></html>\n"
    )


def _figure(photograph: PagePhotograph) -> str:
    name = html.escape(photograph.name)
    return (
        f'<h2>{name}</h2><figure><div class="pair"><img src="{_data_url(photograph.after)}" alt="{name}, after">'
        f'<img class="before" src="{_data_url(photograph.before)}" alt="{name}, before">'
        '<span class="left">before</span><span class="right">after</span>'
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


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
