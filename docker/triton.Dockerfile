# Triton on GPUs: NVIDIA's image, and what its Python models need and it lacks. Not run with a GPU yet (docs/gpu-checklist.md);
# the RUN lines are executed on a substitute base by `make test-docker`.
# To pin the base to its bytes: --build-arg BASE=nvcr.io/nvidia/tritonserver:26.11-py3@sha256:...
ARG BASE=nvcr.io/nvidia/tritonserver:26.11-py3
FROM ${BASE}

ENV NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache \
    NUMBA_CPU_NAME=x86-64-v3
# USER root: NVIDIA's image starts as root today; what is installed must not depend on that.
USER root
# The image's own Python (3.12, which its Python backend is linked to), in an environment without pip. No OpenVINO: the network
# is a TensorRT plan here. requirements/server-gpu.txt is requirements/server.txt less that, a test holds the two together.
RUN --mount=type=bind,target=/src \
    python3 -m venv --without-pip /opt/venv \
 && install="python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --quiet" \
 && $install -r /src/requirements/server-gpu.txt \
 && cp -r /src /tmp/src && $install --no-deps /tmp/src /tmp/src/client && rm -rf /tmp/src \
 && cd / && /opt/venv/bin/python -c "import adapters, imaging" && /opt/venv/bin/python -c "import restormer_client, server"

# PATH: the Python backend's stub takes the environment whose bin is first on it.
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
# NVIDIA's own entry point prints a banner and notices; ours is the server, so that signals and exit codes are its own.
ENTRYPOINT ["/opt/venv/bin/python", "-m", "server"]
CMD ["run"]
