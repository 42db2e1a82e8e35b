"""Client that enhances photographs on a restormer-triton server.

with Enhancer("triton:8001") as enhancer:
    after = enhancer.enhance("before.jpg")
"""

from restormer_client.aio import AsyncEnhancer
from restormer_client.calls import Health, Metadata
from restormer_client.connection import TLS
from restormer_client.enhancer import Enhancer
from restormer_client.errors import (
    AccessDenied,
    DeadlineExceeded,
    EnhanceError,
    InvalidOption,
    InvalidPhotograph,
    InvalidRequest,
    InvalidTensor,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from restormer_client.photo import Photo
from restormer_client.result import Result

__all__ = [
    "TLS",
    "AccessDenied",
    "AsyncEnhancer",
    "DeadlineExceeded",
    "EnhanceError",
    "Enhancer",
    "Health",
    "InvalidOption",
    "InvalidPhotograph",
    "InvalidRequest",
    "InvalidTensor",
    "Metadata",
    "ModelNotReady",
    "Overloaded",
    "Photo",
    "Result",
    "ServerError",
    "ServerUnavailable",
]
