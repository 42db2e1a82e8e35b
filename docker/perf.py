"""Loads a server with photographs through NVIDIA's ``perf_analyzer``, which has to be on PATH (the SDK image has it).

    docker compose run --rm perf                                    inside the compose network, against `triton`
    python docker/perf.py --url 127.0.0.1:8001 --photographs demo/photos -- --concurrency-range 1:8

What follows ``--`` goes to perf_analyzer as it is. It asks for statistics, which are closed to everybody without the
key: ``--key-file``, the file that the server was given as RESTORMER_ADMIN_KEY_FILE. A server with TLS wants
``--tls-ca``, and with mutual TLS ``--tls-cert`` and ``--tls-key`` too. Standard library only.
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
#: As root, because the key is the server's (user 10001) and nobody else's.
MAKE_KEY = "openssl rand -hex 24 | install -m 0400 -o 10001 /dev/stdin docker/secrets/admin-key"
TLS = {
    "tls_ca": "--ssl-grpc-root-certifications-file",
    "tls_cert": "--ssl-grpc-certificate-chain-file",
    "tls_key": "--ssl-grpc-private-key-file",
}
RANGE = ["--concurrency-range", "1:32:4", "--measurement-interval", "10000"]


def main(arguments: list[str]) -> int:
    """Becomes perf_analyzer; returns only if it cannot."""
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
            f"error: no key in {options.key_file} ({error.strerror}), and perf_analyzer asks for statistics: as root,\n"
            f"  {MAKE_KEY}\nand start the server with RESTORMER_ADMIN_KEY_FILE=/run/secrets/admin-key",
            file=sys.stderr,
        )
        return 1
    data = Path(tempfile.mkdtemp()) / "photographs.json"
    data.write_text(json.dumps({"data": [{"IMAGE": {"b64": encoded(path.read_bytes())}} for path in files]}))
    command = ["perf_analyzer", "-m", options.model, "-u", options.url, "-i", "grpc", "--input-data", str(data)]
    command += ["-H", f"triton-grpc-protocol-admin-key:{key}"]
    tls = [part for name, flag in TLS.items() if (path := getattr(options, name)) for part in (flag, path)]
    command += ["--ssl-grpc-use-ssl", *tls] if tls else []
    try:
        os.execvp(command[0], [*command, *(rest or RANGE)])
    except FileNotFoundError:
        print(
            "error: perf_analyzer is not on PATH: pip install perf-analyzer, or docker compose run --rm perf",
            file=sys.stderr,
        )
    return 1


def encoded(photograph: bytes) -> str:
    """A BYTES element as perf_analyzer wants it: its length in four bytes before it, all in base64."""
    return base64.b64encode(struct.pack("<I", len(photograph)) + photograph).decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
