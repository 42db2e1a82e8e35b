"""A real Triton with all options on: mutual TLS, admin key, HTTP, tracing, response cache, explicit control."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
import trustme
from tritonclient.utils import InferenceServerException

from server import engines, preflight
from server.settings import Settings
from tests.conftest import ROOT, free_port, server_command

KEY = "a-key-of-the-tests-0123456789"
KEY_HEADER = {"triton-grpc-protocol-admin-key": KEY}


@dataclass
class Collector:
    """The requests sent to an OpenTelemetry collector."""

    port: int
    bodies: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class SecuredServer:
    """The server's ports, the TLS files of its clients, its log and its collector."""

    grpc_port: int
    metrics_port: int
    http_port: int
    tls: dict[str, Path]
    log: Path
    state: Path
    collector: Collector
    process: subprocess.Popen

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def client(self) -> grpc.InferenceServerClient:
        return client(self.url, self.tls["ca"], self.tls["client_cert"], self.tls["client_key"])


def client(url, ca=None, cert=None, key=None) -> grpc.InferenceServerClient:
    return grpc.InferenceServerClient(
        url,
        ssl=ca is not None,
        root_certificates=str(ca) if ca else None,
        certificate_chain=str(cert) if cert else None,
        private_key=str(key) if key else None,
        channel_args=[("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)],
    )


def rows(**options):
    """Run the pre-start checks with these settings; return their rows by name."""
    return {row.name: row for row in preflight.run_checks(Settings(**options))}


def publish_plan(repository, version, capability, **changes):
    """Publish a plan: any bytes with a matching JSON, with `changes`. Return its path."""
    plan = repository / "restormer" / str(version) / f"model.sm{capability.replace('.', '')}.plan"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(f"plan for {capability}".encode())
    document = {
        "sha256": hashlib.sha256(plan.read_bytes()).hexdigest(),
        "frame": engines.FRAME,
        "precision": "fp16",
        "profile": {"min": [1, 3, 512, 512], "opt": [8, 3, 512, 512], "max": [8, 3, 512, 512]},
        "machine": {"gpu_compute_capability": capability},
        "options": {"compatibility": "none"},
        "runtime": {"name": "tensorrt", "version": "11.4.1.5"},
        **changes,
    }
    plan.with_name(f"{plan.name}.json").write_text(json.dumps(document))
    return plan


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> dict[str, Path]:
    """Write an authority, certificates of it for the server and a client, and one of another authority."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    files = {"ca": folder / "ca.pem"}
    authority.cert_pem.write_to_path(str(files["ca"]))
    for name, issuer in (("server", authority), ("client", authority), ("stranger", other)):
        certificate = issuer.issue_cert("127.0.0.1", "localhost")
        files |= {f"{name}_cert": folder / f"{name}.pem", f"{name}_key": folder / f"{name}.key"}
        certificate.cert_chain_pems[0].write_to_path(str(files[f"{name}_cert"]))
        certificate.private_key_pem.write_to_path(str(files[f"{name}_key"]))
        files[f"{name}_key"].chmod(0o600)
    return files


@pytest.fixture(scope="session")
def collector():
    """Run an HTTP server in place of a collector, and keep the bodies of its requests."""
    collector = Collector(free_port())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", collector.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield collector
    server.shutdown()


@contextmanager
def run_server(log: Path, is_up, **options):
    """Run ``python -m server run`` with these options and wait for ``is_up()``; kill it with its stubs at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            server_command("run", **options), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, "http_proxy": "http://127.0.0.1:9"},  # not for a collector on loopback
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not is_up():
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_ready(connection: grpc.InferenceServerClient) -> bool:
    try:
        return bool(connection.is_server_ready(client_timeout=2))
    except InferenceServerException:
        return False


@pytest.fixture(scope="session")
def secured(repository, certificates, collector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secured")
    key = folder / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    ports = {"grpc_port": free_port(), "metrics_port": free_port(), "http_port": free_port()}
    tls = certificates
    connection = client(f"127.0.0.1:{ports['grpc_port']}", tls["ca"], tls["client_cert"], tls["client_key"])
    with run_server(
        folder / "log", lambda: is_ready(connection), repository=repository, state=folder / "state", **ports,
        tls_cert=tls["server_cert"], tls_key=tls["server_key"], tls_ca=tls["ca"], admin_key_file=key,
        control="explicit", trace=f"http://127.0.0.1:{collector.port}/v1/traces", trace_rate=1, cache_mb=64,
        exit_timeout=5, grpc_connection_age=600,
    ) as process:  # fmt: skip
        yield SecuredServer(
            **ports, tls=tls, log=folder / "log", state=folder / "state", collector=collector, process=process
        )
