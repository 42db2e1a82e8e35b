"""Read from ``config.json`` in which form a package's network saw photographs in training.

This project stretches every photograph to the network's square (``imaging.frame``), as the owner's training does. A
network trained on squares of another size is rejected: its attention and its scale of detail belong to that size.
"""

import re
from dataclasses import dataclass

from export.errors import ExportError
from export.package.documents import Flat, find_claims
from export.package.naming import PAPER, Convention
from imaging import SIDE

_NEARER = "enhance_tiled, which shows the network unstretched detail,"


@dataclass(frozen=True)
class TrainedFrame:
    """What ``config.json`` states about the photographs in training.

    ``text`` quotes it, or says that it is not stated. ``mismatch`` is the size if it differs from this project's, else
    empty; ``remark`` is what a user should know, empty where the network was trained on this frame.
    """

    text: str
    mismatch: str = ""
    remark: str = ""


def trained_frame(config: Flat, convention: Convention) -> TrainedFrame:
    """Read the frame from a flattened ``config.json``; without one, the convention shows whose package it is."""
    preprocessing = next((str(value) for _, value in find_claims(config, ("preprocessing",))), "")
    resolution = next((value for _, value in find_claims(config, ("training.resolution",))), None)
    text = ", ".join(filter(None, (preprocessing, f"resolution {resolution}" if resolution else "")))
    sizes, mismatch, remark = [_size(preprocessing), _size(resolution)], "", ""
    if others := [size for size in sizes if size and size != (SIDE, SIDE)]:
        mismatch = "x".join(map(str, others[0]))
        remark = f"config.json says that the network was trained at {mismatch}, not {SIDE}x{SIDE}"
    elif preprocessing.lower().startswith(("none", "native")):
        remark = f"trained on whole photographs ({text}): {_NEARER} is nearer to that than the {SIDE} frame"
    elif text and not sizes[0 if preprocessing else 1]:
        remark = f"config.json describes an unknown frame: {text}"
    elif convention is PAPER and not config:
        text = "unknown"
        remark = f"no config.json: the frame in training is {text}; {_NEARER} may be nearer to it"
    return TrainedFrame(text or "not stated", mismatch, remark)


def require_frame(frame: TrainedFrame, side_override: int | None) -> None:
    """Raise `ExportError` for a network trained at another size, unless ``side_override`` is this project's."""
    if side_override not in (None, SIDE):
        raise ExportError(f"--side-override {side_override}: engines are built for {SIDE}x{SIDE} only")
    if frame.mismatch and side_override != SIDE:
        raise ExportError(
            f"the network was trained at {frame.mismatch} (config.json: {frame.text}), engines are built for "
            f"{SIDE}x{SIDE}: use a network trained at {SIDE}, or build anyway with --side-override {SIDE}"
        )


def _size(value: object) -> tuple[int, int] | None:
    """Parse height and width from a number, a list of two, or text such as ``resize_to_512x512``."""
    if isinstance(value, list):
        value = "x".join(map(str, value))
    if isinstance(value, int):
        return value, value
    match = re.fullmatch(r"(?:resize_to_)?(\d+)(?:x(\d+))?", value.strip()) if isinstance(value, str) else None
    return (int(match[1]), int(match[2] or match[1])) if match else None
