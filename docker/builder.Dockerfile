# Builds TensorRT plans: the TensorRT image of the same YY.MM as the Triton that serves them, because a plan runs on its exact
# TensorRT only. Not run with a GPU yet (docs/gpu-checklist.md); the RUN lines are executed on a substitute base by
# `make test-docker`.
#   docker compose run --rm builder make engine PRECISION=fp16
ARG BASE=nvcr.io/nvidia/tensorrt:26.11-py3
FROM ${BASE}

USER root
WORKDIR /workspace
COPY requirements/build.txt requirements/client.txt requirements/gpu.txt requirements/
# With the system's packages in sight: TensorRT is the image's own, never one from an index. onnxruntime-gpu takes the place of
# onnxruntime, as `make setup-gpu` has it.
RUN python3 -m venv --without-pip --system-site-packages /opt/envs/build \
 && install="python3 -m pip --python /opt/envs/build/bin/python install --no-cache-dir --quiet" \
 && grep -v '^onnxruntime==' requirements/build.txt > /tmp/build.txt \
 && grep -v '^tensorrt==' requirements/gpu.txt > /tmp/gpu.txt \
 && $install -r /tmp/build.txt -r requirements/client.txt -r /tmp/gpu.txt \
 && rm /tmp/build.txt /tmp/gpu.txt
COPY . .
# The stamps tell make that the environment above is the one it would make, and is there.
RUN python3 -m pip --python /opt/envs/build/bin/python install --no-cache-dir --quiet --no-deps . ./client \
 && rm -rf build client/build ./*.egg-info client/*.egg-info \
 && cd /opt/envs && touch build.done build-ours.done gpu.done
ENV ENVS=/opt/envs \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
CMD ["make", "help"]
