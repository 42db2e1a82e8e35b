# Python and make instead of NVIDIA's TensorRT image, as a base for the builder's Dockerfile.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make
