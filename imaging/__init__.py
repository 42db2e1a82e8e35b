"""Pure functions on pixels: decode, frame (stretch to the square), transfer (carry a look to full size), tiles, encode.

The same code prepares fidelity images on the build side and photographs in the server, so there is no skew
between them. It runs under NumPy 1.26 (the server's Python) and NumPy 2 (everywhere else), and imports nothing
of this project: no PyTorch, no Triton.
"""

from imaging.codec import SUFFIXES, decode, decode_small
from imaging.encoding import encode
from imaging.errors import InvalidOption, InvalidPhotograph, InvalidRequest
from imaging.frame import FRAME, SIDE, core_from_pixels, pixels_from_core
from imaging.options import Options
from imaging.photograph import Limits, Photograph
from imaging.pipeline import finished, prepared
from imaging.transfer import Look

__all__ = [
    "FRAME",
    "SIDE",
    "SUFFIXES",
    "InvalidOption",
    "InvalidPhotograph",
    "InvalidRequest",
    "Limits",
    "Look",
    "Options",
    "Photograph",
    "core_from_pixels",
    "decode",
    "decode_small",
    "encode",
    "finished",
    "pixels_from_core",
    "prepared",
]
