"""Pure functions on pixels: decode, frame (fit to the model), transfer (carry a look to full size), tiles, encode.

The same code prepares fidelity images on the build side and photographs in the server, so there is no skew
between them. It runs under NumPy 1.26 (the server's Python) and NumPy 2 (everywhere else), and imports nothing
of this project: no PyTorch, no Triton.
"""

from imaging.codec import SUFFIXES, decode, decode_small
from imaging.encoding import encode
from imaging.errors import InvalidOption, InvalidPhotograph, InvalidRequest
from imaging.frame import SIDE, Frame, framed, unframed
from imaging.options import Options
from imaging.photograph import Limits, Photograph
from imaging.pipeline import finished, prepared
from imaging.transfer import Look

__all__ = [
    "SIDE",
    "SUFFIXES",
    "Frame",
    "InvalidOption",
    "InvalidPhotograph",
    "InvalidRequest",
    "Limits",
    "Look",
    "Options",
    "Photograph",
    "decode",
    "decode_small",
    "encode",
    "finished",
    "framed",
    "prepared",
    "unframed",
]
