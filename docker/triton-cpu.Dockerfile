# Triton for CPU hosts: the PyPI wheel of the server and the environment of its Python models, without build tools.
# The model repository is mounted and not copied, so that a new engine needs no new image.
# To pin the base by digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ENV NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache \
    NUMBA_CPU_NAME=x86-64-v3
# One layer, so that deleted files do not stay in the image; the sources are mounted and not copied.
#  - pip stays outside the environment, so that a compromised server cannot install packages.
#  - Kept of the Triton wheel: the server, its Python backend, its response cache and the stub of this Python. Deleted: its Python
#    package, the stubs of other Pythons and their libpython.
#  - Kept of OpenVINO: the CPU plugin and the ONNX reader. Deleted: the plugins for Intel's GPUs and NPUs and the other readers.
#  - The import compiles the loops of imaging and adapters for x86-64-v3 (AVX2); containers only read the result.
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
