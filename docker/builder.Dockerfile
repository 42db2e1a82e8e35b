# Builds TensorRT plans. The TensorRT image has the same YY.MM as the Triton that serves the plans, because a plan runs only on the
# TensorRT version that built it. Not run with a GPU yet (docs/gpu-checklist.md); `make test-docker` runs the RUN lines on another base.
#   docker compose run --rm builder make engine PRECISION=fp16
ARG BASE=nvcr.io/nvidia/tensorrt:26.11-py3
FROM ${BASE}

USER root
WORKDIR /workspace
COPY requirements/build.txt requirements/client.txt requirements/gpu.txt requirements/
# --system-site-packages: TensorRT comes from the image and not from an index. onnxruntime-gpu replaces onnxruntime, as in
# `make setup-gpu`.
RUN python3 -m venv --without-pip --system-site-packages /opt/envs/build \
 && install="python3 -m pip --python /opt/envs/build/bin/python install --no-cache-dir --quiet" \
 && grep -v '^onnxruntime==' requirements/build.txt > /tmp/build.txt \
 && grep -v '^tensorrt==' requirements/gpu.txt > /tmp/gpu.txt \
 && $install -r /tmp/build.txt -r requirements/client.txt -r /tmp/gpu.txt \
 && rm /tmp/build.txt /tmp/gpu.txt
COPY . .
# These stamp files tell make that the environment is installed (see the Makefile).
RUN python3 -m pip --python /opt/envs/build/bin/python install --no-cache-dir --quiet --no-deps . ./client \
 && rm -rf build client/build ./*.egg-info client/*.egg-info \
 && sha256sum requirements/build.txt requirements/client.txt > /opt/envs/build.done \
 && pwd -P | sha256sum - pyproject.toml client/pyproject.toml > /opt/envs/build-ours.done \
 && sha256sum requirements/gpu.txt > /opt/envs/gpu.done
ENV RESTORMER_ENVS=/opt/envs \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
CMD ["make", "help"]
