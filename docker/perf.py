"""Load a server with photographs, using NVIDIA's ``perf_analyzer``, which must be on PATH (the SDK image has it).

    docker compose run --rm perf                                    inside the compose network, against `triton`
    python docker/perf.py --url 127.0.0.1:8001 --photographs demo/photos -- --concurrency-range 1:8

Arguments after ``--`` are passed to perf_analyzer. It reads the server's statistics, which need the admin key: pass the
file of RESTORMER_ADMIN_KEY_FILE as ``--key-file``. For a server with TLS pass ``--tls-ca``, and for mutual TLS also
``--tls-cert`` and ``--tls-key``. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

KEY_FILE = Path("/run/secrets/admin-key")
#: Needs root, because the file belongs to the server's user (10001).
MAKE_KEY = "openssl rand -hex 24 | install -m 0400 -o 10001 /dev/stdin docker/secrets/admin-key"
TLS = {
    "tls_ca": "--ssl-grpc-root-certifications-file",
    "tls_cert": "--ssl-grpc-certificate-chain-file",
    "tls_key": "--ssl-grpc-private-key-file",
}
RANGE = ["--concurrency-range", "1:32:4", "--measurement-interval", "10000"]


def main(arguments: list[str]) -> int:
    """Replace this process with perf_analyzer; return 1 if that fails."""
    parser = argparse.ArgumentParser(prog="perf.py", description="perf_analyzer with photographs")
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="enhance")
    parser.add_argument("--photographs", type=Path, default=Path("demo/photos"), help="folder of photographs")
    parser.add_argument("--key-file", type=Path, default=KEY_FILE)
    for name in TLS:
        parser.add_argument(f"--{name.replace('_', '-')}", help="PEM file")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, rest = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    files = sorted(p for p in options.photographs.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not files:
        print(f"error: no photographs in {options.photographs}: give a folder with --photographs", file=sys.stderr)
        return 1
    try:
        key = options.key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        print(
            f"error: cannot read the admin key {options.key_file} ({error.strerror}): as root, run\n"
            f"  {MAKE_KEY}\nand start the server with RESTORMER_ADMIN_KEY_FILE=/run/secrets/admin-key",
            file=sys.stderr,
        )
        return 1
    data = Path(tempfile.mkdtemp()) / "photographs.json"
    elements = [{"IMAGE": {"b64": encode_bytes_element(path.read_bytes())}} for path in files]
    data.write_text(json.dumps({"data": elements}))
    command = ["perf_analyzer", "-m", options.model, "-u", options.url, "-i", "grpc", "--input-data", str(data)]
    command += ["-H", f"triton-grpc-protocol-admin-key:{key}"]
    tls = [part for name, flag in TLS.items() if (path := getattr(options, name)) for part in (flag, path)]
    command += ["--ssl-grpc-use-ssl", *tls] if tls else []
    try:
        os.execvp(command[0], [*command, *(rest or RANGE)])
    except FileNotFoundError:
        error = "error: perf_analyzer is not on PATH: pip install perf-analyzer, or docker compose run --rm perf"
        print(error, file=sys.stderr)
    return 1


def encode_bytes_element(photograph: bytes) -> str:
    """Encode a BYTES element for perf_analyzer: a length of four bytes, then the photograph, all in base64."""
    return base64.b64encode(struct.pack("<I", len(photograph)) + photograph).decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
