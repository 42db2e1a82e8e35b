"""A real Triton with everything switched on: mutual TLS, a key, HTTP, tracing, the cache, explicit control."""

import gzip
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

from tests.conftest import ROOT, free_port, server_command

KEY = "a-key-of-the-tests-0123456789"
KEY_HEADER = {"triton-grpc-protocol-admin-key": KEY}


@dataclass
class Collector:
    """What an OpenTelemetry collector's HTTP port was sent."""

    port: int
    bodies: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Fortress:
    """The server's ports, the files that let a client in, its log and its collector."""

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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> dict[str, Path]:
    """An authority, a server's and a client's certificate of it, and a stranger's of another."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    files = {"ca": folder / "ca.pem"}
    authority.cert_pem.write_to_path(str(files["ca"]))
    for name, issuer in (("server", authority), ("client", authority), ("stranger", other)):
        made = issuer.issue_cert("127.0.0.1", "localhost")
        files |= {f"{name}_cert": folder / f"{name}.pem", f"{name}_key": folder / f"{name}.key"}
        made.cert_chain_pems[0].write_to_path(str(files[f"{name}_cert"]))
        made.private_key_pem.write_to_path(str(files[f"{name}_key"]))
        files[f"{name}_key"].chmod(0o600)
    return files


@pytest.fixture(scope="session")
def collector():
    """Listens where a collector would, and keeps what comes."""
    kept = Collector(free_port())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", kept.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kept
    server.shutdown()


@contextmanager
def running(log: Path, is_up, **options):
    """``python -m server run`` with these options, once ``is_up()``; ended with its stubs."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            server_command("run", **options), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
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


def is_ready(made: grpc.InferenceServerClient) -> bool:
    try:
        return bool(made.is_server_ready(client_timeout=2))
    except InferenceServerException:
        return False


@pytest.fixture(scope="session")
def fortress(repository, certificates, collector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fortress")
    key = folder / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    ports = {"grpc_port": free_port(), "metrics_port": free_port(), "http_port": free_port()}
    tls = certificates
    knock = client(f"127.0.0.1:{ports['grpc_port']}", tls["ca"], tls["client_cert"], tls["client_key"])
    with running(
        folder / "log", lambda: is_ready(knock), repository=repository, state=folder / "state", **ports,
        tls_cert=tls["server_cert"], tls_key=tls["server_key"], tls_ca=tls["ca"], admin_key_file=key,
        control="explicit", trace=f"http://127.0.0.1:{collector.port}/v1/traces", trace_rate=1, cache_mb=64,
        exit_timeout=5, grpc_connection_age=600,
    ) as process:  # fmt: skip
        yield Fortress(
            **ports, tls=tls, log=folder / "log", state=folder / "state", collector=collector, process=process
        )
