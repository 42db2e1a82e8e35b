"""What the Python models of the server share: metrics, request parameters and the answer to each request.

It runs in Triton's Python stubs and imports only ``imaging``. The models pass ``triton_python_backend_utils`` in,
which exists in a stub only.
"""
