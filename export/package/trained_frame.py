"""Read off ``config.json`` which form of photographs a package's network was trained on.

Here every photograph is stretched to the network's square (``imaging.frame``), as the owner trains. A network trained
on squares of another size is refused: its attention and its scale of detail belong to that size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from export.errors import ExportError
from export.package.documents import Flat, claims_of
from export.package.naming import PAPER, Convention
from imaging import SIDE

_NEARER = "enhance_tiled, which shows the network unstretched detail,"


@dataclass(frozen=True)
class TrainedFrame:
    """What ``config.json`` says about the photographs of the training.

    ``text`` quotes it, or says that it is not stated. ``mismatch`` names another size than ours, empty where there is
    none; ``remark`` is what a user should know, empty where the network was trained on our frame.
    """

    text: str
    mismatch: str = ""
    remark: str = ""


def trained_frame(config: Flat, convention: Convention) -> TrainedFrame:
    """Read the frame off a flattened ``config.json``; the convention tells whose package it is where there is none."""
    preprocessing = next((str(value) for _, value in claims_of(config, ("preprocessing",))), "")
    resolution = next((value for _, value in claims_of(config, ("training.resolution",))), None)
    text = ", ".join(filter(None, (preprocessing, f"resolution {resolution}" if resolution else "")))
    if other := [size for size in (_size(preprocessing), _size(resolution)) if size and size != (SIDE, SIDE)]:
        size = "x".join(map(str, other[0]))
        return TrainedFrame(text, size, f"config.json says that the network was trained at {size}, not {SIDE}x{SIDE}")
    if _size(preprocessing) or (not preprocessing and _size(resolution)):
        return TrainedFrame(text)
    if preprocessing.lower().startswith(("none", "native")):
        return TrainedFrame(
            text, remark=f"trained on whole photographs ({text}): {_NEARER} is nearer to that than the {SIDE} frame"
        )
    if text:
        return TrainedFrame(text, remark=f"config.json describes a frame that is not known here: {text}")
    if convention is PAPER and not config:
        return TrainedFrame(
            "unknown", remark=f"no config.json: the frame of the training is unknown; {_NEARER} may be nearer to it"
        )
    return TrainedFrame("not stated")


def require_frame(frame: TrainedFrame, side_override: int | None) -> None:
    """Refuse a network trained at another size, unless the caller insists on ours."""
    if side_override not in (None, SIDE):
        raise ExportError(f"--side-override {side_override}: engines are built for {SIDE}x{SIDE} only")
    if frame.mismatch and side_override != SIDE:
        raise ExportError(
            f"the network was trained at {frame.mismatch} (config.json: {frame.text}), engines are built for "
            f"{SIDE}x{SIDE}: ask for a network trained at {SIDE}, or build all the same with --side-override {SIDE} "
            f"(make: SIDE_OVERRIDE={SIDE})"
        )


def _size(value: object) -> tuple[int, int] | None:
    """Height and width of a size, as a number, a list of two, or text such as ``resize_to_512x512``."""
    if isinstance(value, list):
        value = "x".join(map(str, value))
    if isinstance(value, int):
        return value, value
    match = re.fullmatch(r"(?:resize_to_)?(\d+)(?:x(\d+))?", value.strip()) if isinstance(value, str) else None
    return (int(match[1]), int(match[2] or match[1])) if match else None
