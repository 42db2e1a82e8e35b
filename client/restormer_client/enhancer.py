"""The client itself."""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from restormer_client.errors import EnhanceError, ServerUnavailable, error_from_triton

MODEL = "enhance"
TILED_MODEL = "enhance_tiled"
TIMEOUT = 30.0  #: seconds a call may take unless told otherwise
_POLL = 0.2
_LOOPBACK = ("127.", "localhost:", "[::1]:")
#: `channel_args` replaces tritonclient's defaults, so the message limits stand here: none, Triton's own bound holds.
_CHANNEL = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Enhancer:
    """One connection to a server, ``host:port`` of its gRPC endpoint. Connects on first use; a context manager."""

    def __init__(self, url: str = "127.0.0.1:8001") -> None:
        self.url = url
        # gRPC sends even loopback through http_proxy.
        local = [("grpc.enable_http_proxy", 0)] if url.startswith(_LOOPBACK) else []
        self._client = triton.InferenceServerClient(url, channel_args=[*_CHANNEL, *local])

    def __enter__(self) -> Enhancer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def enhance(
        self,
        photograph: bytes | bytearray | memoryview,
        *,
        format: str | None = None,
        quality: int | None = None,
        size: str | int | None = None,
        strength: float | None = None,
        gps: str | None = None,
        tiled: bool = False,
        timeout: float = TIMEOUT,
    ) -> bytes:
        """An encoded photograph, enhanced; what is not asked for comes back as it was sent.

        ``format``: ``jpeg``, ``png``, ``webp``, ``tiff`` or ``avif`` (usually the photograph's own; JPEG for HEIC).
        ``quality``: 1 to 100 (usually 92). ``size``: ``native`` (usually) or ``512``, the longer side in pixels.
        ``strength``: 0, the photograph as it was, to 1, the whole effect (usually). ``gps``: ``keep`` (usually) or
        ``strip`` the place in EXIF and XMP. ``tiled``: run the network over the full resolution in tiles, for detail;
        dozens of times the work. ``timeout``: seconds for the whole call. The server checks the values. Raises
        `EnhanceError` or one of its kin.
        """
        if not isinstance(photograph, (bytes, bytearray, memoryview)):
            kind = type(photograph).__name__
            raise TypeError(f"photograph has to be the bytes of an image file, not {kind}: Path(...).read_bytes()")
        asked = {"format": format, "quality": quality, "size": size, "strength": strength, "gps": gps}
        # As text: Triton's parameters know no floating point on older servers.
        parameters = {name: str(value) for name, value in asked.items() if value is not None}
        model = TILED_MODEL if tiled else MODEL
        image = triton.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[bytes(photograph)]], dtype=np.object_))
        try:
            result = self._client.infer(model, [image], parameters=parameters, client_timeout=timeout)
        except InferenceServerException as error:
            raise error_from_triton(error, self.url) from error
        enhanced = result.as_numpy("ENHANCED")
        if enhanced is None:
            raise EnhanceError(f"{self.url} answered without ENHANCED: is {model!r} there the model of this project?")
        return bytes(enhanced.item())

    def wait_until_ready(self, timeout: float = TIMEOUT) -> None:
        """Returns when the server says the ensemble is ready; `ServerUnavailable` after ``timeout`` seconds."""
        deadline, reason = time.monotonic() + timeout, "nobody was asked"
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._client.is_model_ready(MODEL, client_timeout=max(left, 0.01)):
                    return
                reason = f"model {MODEL!r} is not ready"
            except InferenceServerException as error:
                reason = str(error.message())
            time.sleep(min(_POLL, max(left, 0)))
        raise ServerUnavailable(f"{self.url} was not ready within {timeout:g} s: {reason}")

    def server_version(self, *, timeout: float = TIMEOUT) -> str:
        """Triton's version, for example ``2.51.0``."""
        try:
            return str(self._client.get_server_metadata(client_timeout=timeout).version)
        except InferenceServerException as error:
            raise error_from_triton(error, self.url) from error
