"""Pure functions on pixels: decode, frame (fit to the model), transfer (carry a look to full size), encode.

The same code prepares fidelity images on the build side and photographs in the server, so there is no skew
between them. It runs under NumPy 1.26 (the server's Python) and NumPy 2 (everywhere else), and imports nothing
of this project: no PyTorch, no Triton.
"""

from imaging.codec import SUFFIXES, Photograph, decode, decode_small, encode
from imaging.errors import InvalidPhotograph
from imaging.frame import SIDE, Frame, framed, unframed
from imaging.transfer import transfer

__all__ = [
    "SIDE",
    "SUFFIXES",
    "Frame",
    "InvalidPhotograph",
    "Photograph",
    "decode",
    "decode_small",
    "encode",
    "framed",
    "transfer",
    "unframed",
]
