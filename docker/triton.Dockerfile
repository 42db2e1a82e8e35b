# Triton for GPUs: NVIDIA's image and the packages of the Python models. Not run with a GPU yet (docs/gpu-checklist.md);
# `make test-docker` runs the RUN lines on another base.
# To pin the base by digest: --build-arg BASE=nvcr.io/nvidia/tritonserver:26.11-py3@sha256:...
ARG BASE=nvcr.io/nvidia/tritonserver:26.11-py3
FROM ${BASE}

ENV NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache \
    NUMBA_CPU_NAME=x86-64-v3
# NVIDIA's image starts as root today; state it, because the installation depends on it.
USER root
# The image's Python (3.12, which its Python backend is linked to), in an environment without pip. The network is a TensorRT plan
# here, so requirements/server-gpu.txt is requirements/server.txt without OpenVINO (a test compares them).
RUN --mount=type=bind,target=/src \
    python3 -m venv --without-pip /opt/venv \
 && install="python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --quiet" \
 && $install -r /src/requirements/server-gpu.txt \
 && cp -r /src /tmp/src && $install --no-deps /tmp/src /tmp/src/client && rm -rf /tmp/src \
 && cd / && /opt/venv/bin/python -c "import adapters, imaging" && /opt/venv/bin/python -c "import restormer_client, server"

# The Python backend's stub uses the first environment on PATH.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CUDA_CACHE_PATH=/tmp/cuda \
    RESTORMER_REPOSITORY=/models \
    RESTORMER_TRITON=/opt/tritonserver \
    RESTORMER_STATE=/run/triton \
    RESTORMER_ADDRESS=0.0.0.0
WORKDIR /
USER 10001:10001
EXPOSE 8001 8002
# The server replaces NVIDIA's entry point, a script, so that signals and exit codes are the server's. For old drivers the script
# links CUDA's compatibility libraries, which needs root and a writable container; the server passes their folder to Triton
# instead (server/host.py).
ENTRYPOINT ["/opt/venv/bin/python", "-m", "server"]
CMD ["run"]
