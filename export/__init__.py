"""Build side: model package -> network -> ONNX -> engine -> fidelity check -> publish.

It needs PyTorch and ONNX. It imports ``imaging``, so that calibration and fidelity images are prepared exactly as
served requests are, and never ``server`` or the client.
"""
