"""Enhances photographs on a restormer-triton server.

with Enhancer("triton:8001") as enhancer:
    after = enhancer.enhance(before)
"""

from restormer_client.enhancer import Enhancer
from restormer_client.errors import (
    DeadlineExceeded,
    EnhanceError,
    InvalidPhotograph,
    Overloaded,
    ServerUnavailable,
)

__all__ = ["DeadlineExceeded", "EnhanceError", "Enhancer", "InvalidPhotograph", "Overloaded", "ServerUnavailable"]
