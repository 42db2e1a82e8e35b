# Stands in for NVIDIA's TensorRT image, which has make and Python: what the builder's Dockerfile installs is installed on it.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make
