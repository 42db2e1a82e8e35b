"""Enhances photographs on a restormer-triton server.

with Enhancer("triton:8001") as enhancer:
    after = enhancer.enhance(before)
"""

from restormer_client.enhancer import Enhancer
from restormer_client.errors import (
    DeadlineExceeded,
    EnhanceError,
    InvalidOption,
    InvalidPhotograph,
    Overloaded,
    ServerUnavailable,
)

__all__ = [
    "DeadlineExceeded",
    "EnhanceError",
    "Enhancer",
    "InvalidOption",
    "InvalidPhotograph",
    "Overloaded",
    "ServerUnavailable",
]
