# Triton on a plain CPU host: the PyPI wheel of the server, the environment of its Python models, and nothing to build with.
# The model repository is mounted, not copied: publishing an engine needs no new image.
FROM python:3.11-slim-bookworm

WORKDIR /opt/restormer
COPY requirements/server.txt requirements/triton.txt requirements/
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --quiet -r requirements/server.txt \
 && /opt/venv/bin/pip install --no-cache-dir --quiet --no-deps --target /opt/triton -r requirements/triton.txt

COPY pyproject.toml README.md LICENSE ./
COPY imaging imaging
COPY server server
COPY export export
COPY client client
# The compiled loops are made here, for any x86-64 of the last ten years (AVX2), and only read by the read-only container.
ENV NUMBA_CACHE_DIR=/opt/numba \
    NUMBA_CACHE_LOCATOR_CLASSES=imaging.compiled.BuiltCache \
    NUMBA_CPU_NAME=x86-64-v3
RUN /opt/venv/bin/pip install --no-cache-dir --quiet --no-deps . ./client \
 && rm -rf /opt/restormer \
 && cd / && /opt/venv/bin/python -c "import imaging"

WORKDIR /
USER 10001:10001
EXPOSE 8001 8002
# Deep: a tiny photograph goes through the whole pipeline. Triton 2.51's own readiness stays 200 after a stub has died.
HEALTHCHECK --interval=15s --timeout=35s --start-period=60s --retries=3 \
  CMD ["/opt/venv/bin/restormer-client", "status", "--timeout", "30"]
ENTRYPOINT ["/opt/venv/bin/python", "-m", "server", "--repository", "/models", "--wheel", "/opt/triton", \
            "--state", "/run/triton", "--address", "0.0.0.0"]
CMD ["run"]
