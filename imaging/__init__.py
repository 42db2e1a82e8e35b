"""Pure functions on pixels: decode, stretch to the network's square, apply a look at full size, cut tiles, encode.

The build side prepares images for calibration and fidelity with the same code as the server, so there is no skew
between them. It runs under NumPy 1.26 (the server's Python) and NumPy 2 (everywhere else), and imports nothing else of
this project, nor PyTorch or Triton.
"""

from imaging.codec import SUFFIXES, decode, decode_small
from imaging.encoding import encode
from imaging.errors import InvalidOption, InvalidPhotograph, InvalidRequest
from imaging.frame import FRAME, SIDE, core_from_pixels, pixels_from_core
from imaging.options import Options
from imaging.photograph import Limits, Photograph
from imaging.pipeline import core_from_file, file_from_core
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
    "core_from_file",
    "core_from_pixels",
    "decode",
    "decode_small",
    "encode",
    "file_from_core",
    "pixels_from_core",
]
