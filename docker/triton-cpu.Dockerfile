# Triton on a plain CPU host: the PyPI wheel of the server, the environment of its Python models, and nothing to build with.
# The model repository is mounted, not copied: publishing an engine needs no new image.
# To pin the base to its bytes: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ENV NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache \
    NUMBA_CPU_NAME=x86-64-v3
# One layer, so that what is deleted never reaches the image; the sources are mounted, not copied.
#  - pip stays outside the environment: a server that cannot install is one that cannot be made to.
#  - Of the Triton wheel the server, its Python backend, its response cache and the stub of this Python; not its own
#    Python package, the stubs of other Pythons and the libpython of one of them.
#  - Of OpenVINO the processor plugin and the ONNX reader; not the plugins of Intel's GPUs and NPUs and the other readers.
#  - The compiled loops are made here, for any x86-64 of the last ten years (AVX2), and only read later.
RUN --mount=type=bind,target=/src \
    python3 -m venv --without-pip /opt/venv \
 && install="python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --quiet" \
 && $install -r /src/requirements/server.txt \
 && $install --no-deps --target /opt/triton -r /src/requirements/triton.txt \
 && cp -r /src /tmp/src && $install --no-deps /tmp/src /tmp/src/client && rm -rf /tmp/src \
 && cd /opt/triton && keep="pytriton/tritonserver" \
 && find pytriton -mindepth 1 -maxdepth 1 ! -name tritonserver -exec rm -rf {} + \
 && find $keep/python_backend_stubs -mindepth 1 -maxdepth 1 ! -name "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" -exec rm -rf {} + \
 && rm -rf bin nvidia_pytriton.libs/libpython* \
 && cd /opt/venv/lib/python3*/site-packages/openvino/libs \
 && rm -f libopenvino_intel_gpu_plugin.so libopenvino_intel_npu_plugin.so cache.json \
    libopenvino_tensorflow*_frontend.so* libopenvino_pytorch_frontend.so* libopenvino_paddle_frontend.so* \
    libopenvino_jax_frontend.so* libopenvino_gguf_frontend.so* \
 && cd / && /opt/venv/bin/python -c "import adapters, imaging" && /opt/venv/bin/python -c "import openvino, restormer_client, server"

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RESTORMER_REPOSITORY=/models \
    RESTORMER_WHEEL=/opt/triton \
    RESTORMER_STATE=/run/triton \
    RESTORMER_HARDWARE=cpu \
    RESTORMER_ADDRESS=0.0.0.0
WORKDIR /
USER 10001:10001
EXPOSE 8001 8002
ENTRYPOINT ["/opt/venv/bin/python", "-m", "server"]
CMD ["run"]
