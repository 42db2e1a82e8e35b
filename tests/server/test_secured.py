"""Access control, tracing, cache and logs of a real Triton with all options on."""

import io
import json
import os
import re
import stat
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as grpc
import trustme
from PIL import Image
from tritonclient.utils import InferenceServerException

from server.settings import RESTRICTED
from tests.conftest import ROOT, free_port, server_command
from tests.photographs import encode_image, open_image, pixels
from tests.server.conftest import KEY, KEY_HEADER, client

LATITUDE = (48.0, 51.0, 29.59)
#: One call of every group that the server restricts.
CALLS = {
    "model-repository": lambda c, **k: c.get_model_repository_index(**k),
    "model-config": lambda c, **k: c.get_model_config("restormer", **k),
    "shared-memory": lambda c, **k: c.get_system_shared_memory_status(**k),
    "trace": lambda c, **k: c.get_trace_settings(**k),
    "logging": lambda c, **k: c.get_log_settings(**k),
    "statistics": lambda c, **k: c.get_inference_statistics("restormer", **k),
}


def enhance(connection, photograph, **parameters):
    image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
    parameters = {name: str(value) for name, value in parameters.items()}
    return connection.infer("enhance", [image], parameters=parameters, client_timeout=120).as_numpy("ENHANCED").item()


def metric(port, pattern):
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", answer.read().decode(), re.MULTILINE))


def jpeg_with_private_exif(width=64, height=48):
    """Encode a JPEG with a position and an artist in its EXIF."""
    image = Image.fromarray(pixels(height, width))
    exif = image.getexif()
    exif[0x013B] = "Somebody Private"
    exif.get_ifd(0x8825).update({1: "N", 2: LATITUDE, 3: "E", 4: LATITUDE})
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_a_client_with_a_certificate_is_served(secured):
    with secured.client() as connection:
        assert open_image(enhance(connection, encode_image(pixels(48, 64)))).size == (64, 48)


def test_the_deep_check_accepts_a_certificate_for_a_name(repository, tmp_path):
    """Mutual TLS on all addresses, with a certificate for triton.example only."""
    authority = trustme.CA()
    certificate = authority.issue_cert("triton.example")
    files = {"tls_ca": tmp_path / "ca.pem", "tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "cert.key"}
    authority.cert_pem.write_to_path(str(files["tls_ca"]))
    certificate.cert_chain_pems[0].write_to_path(str(files["tls_cert"]))
    certificate.private_key_pem.write_to_path(str(files["tls_key"]))
    files["tls_key"].chmod(0o600)
    command = server_command(
        "start", repository=repository, state=tmp_path / "state", address="0.0.0.0", grpc_port=free_port(),
        metrics_port=free_port(), tls_name="triton.example", **files,
    )  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    stopped = subprocess.run([*command[:-1], "stop"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Triton stopped" in stopped.stderr


@pytest.mark.parametrize(
    "caller", ["without TLS", "without a certificate", "certificate of another authority", "trusting another authority"]
)
def test_other_clients_are_rejected(secured, caller):
    tls = secured.tls
    connection = {
        "without TLS": lambda: client(secured.url),
        "without a certificate": lambda: client(secured.url, tls["ca"]),
        "certificate of another authority": lambda: client(
            secured.url, tls["ca"], tls["stranger_cert"], tls["stranger_key"]
        ),
        "trusting another authority": lambda: client(
            secured.url, tls["stranger_cert"], tls["client_cert"], tls["client_key"]
        ),
    }[caller]()
    with connection, pytest.raises(InferenceServerException):
        connection.is_server_live(client_timeout=5)


def test_calls_has_one_call_for_each_restricted_group():
    assert set(CALLS) == set(RESTRICTED)


@pytest.mark.parametrize("group", RESTRICTED)
def test_a_restricted_group_needs_the_key(secured, group):
    with secured.client() as connection:
        for headers in ({}, {"triton-grpc-protocol-admin-key": KEY[:-1]}, {"admin-key": KEY}):
            with pytest.raises(InferenceServerException, match="restricted"):
                CALLS[group](connection, headers=headers, client_timeout=10)
        CALLS[group](connection, headers=KEY_HEADER, client_timeout=10)


@pytest.mark.parametrize("group", RESTRICTED)
def test_without_a_key_file_the_groups_need_a_random_key(triton, group):
    path = triton.state / "admin.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with client(triton.url) as connection:
        with pytest.raises(InferenceServerException, match="restricted"):
            CALLS[group](connection, client_timeout=10)
        CALLS[group](
            connection, headers={"triton-grpc-protocol-admin-key": path.read_text().strip()}, client_timeout=10
        )


def test_models_cannot_be_unloaded_without_explicit_control(triton):
    key = (triton.state / "admin.key").read_text().strip()
    with (
        client(triton.url) as connection,
        pytest.raises(InferenceServerException, match="polling is enabled|not allowed"),
    ):
        connection.unload_model("enhance_tiled", headers={"triton-grpc-protocol-admin-key": key})


def test_models_can_be_loaded_with_the_key(secured):
    with secured.client() as connection:
        with pytest.raises(InferenceServerException, match="restricted"):
            connection.unload_model("enhance_tiled")
        connection.unload_model("enhance_tiled", headers=KEY_HEADER)
        deadline = time.monotonic() + 60
        while connection.is_model_ready("enhance_tiled") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not connection.is_model_ready("enhance_tiled")
        connection.load_model("enhance_tiled", headers=KEY_HEADER)
        assert connection.is_model_ready("enhance_tiled")


def test_http_serves_health_without_a_key_and_statistics_with_it(secured):
    base = f"http://127.0.0.1:{secured.http_port}/v2"
    with urlopen(f"{base}/health/ready", timeout=10) as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError) as rejected:
        urlopen(f"{base}/models/restormer/stats", timeout=10)
    assert rejected.value.code == 403
    with urlopen(Request(f"{base}/models/restormer/stats", headers={"admin-key": KEY}), timeout=10) as answer:
        assert json.load(answer)["model_stats"]


def test_the_cache_keeps_only_the_output_of_the_network(secured):
    """For one photograph at two strengths, the network runs once and the answers differ."""
    photograph = encode_image(pixels(90, 120))
    name = r'nv_cache_num_{}_per_model\{{model="{}",version="1"\}}'
    with secured.client() as connection:
        hits, misses = (metric(secured.metrics_port, name.format(what, "restormer")) for what in ("hits", "misses"))
        whole, half, again = (enhance(connection, photograph, strength=strength) for strength in (1, 0.5, 1))
    assert whole != half
    assert whole == again
    assert metric(secured.metrics_port, name.format("misses", "restormer")) == misses + 1
    assert metric(secured.metrics_port, name.format("hits", "restormer")) == hits + 2
    for other in ("enhance", "preprocess", "postprocess", "enhance_tiled"):
        assert metric(secured.metrics_port, name.format("(?:hits|misses)", other)) == 0


def test_traces_name_the_models_and_hold_no_pixels(secured):
    photograph = jpeg_with_private_exif()
    with secured.client() as connection:
        enhance(connection, photograph)
    deadline = time.monotonic() + 60
    while not any(b"postprocess" in body for body in secured.collector.bodies) and time.monotonic() < deadline:
        time.sleep(0.2)
    sent = b"".join(secured.collector.bodies)
    assert b"restormer-triton" in sent
    assert all(model in sent for model in (b"enhance", b"preprocess", b"restormer", b"postprocess"))
    assert photograph[200:232] not in sent
    assert b"\xff\xd8\xff" not in sent


def test_logs_hold_no_photograph_no_position_and_no_key(secured):
    """After a valid photograph, damaged ones and invalid options."""
    photograph = jpeg_with_private_exif()
    with secured.client() as connection:
        enhance(connection, photograph)
        for wrong, options in (
            (photograph[: len(photograph) // 2], {}),
            (photograph, {"strength": 7}),
            (b"x" * 99, {}),
        ):
            with pytest.raises(InferenceServerException):
                enhance(connection, wrong, **options)
    log = secured.log.read_bytes()
    assert log.isascii()
    assert b"\x00" not in log
    for private in (b"Somebody", b"29.59", b"2959", b"GPS", b"Exif", b"xxxxxxxx", b"\\xff\\xd8", KEY.encode()):
        assert private not in log


def test_histograms_count_photographs(triton):
    name = r'restormer_photograph_ms_count\{{model="{}",version="1"\}}'
    before = {step: metric(triton.metrics_port, name.format(step)) for step in ("preprocess", "postprocess")}
    with client(triton.url) as connection:
        enhance(connection, encode_image(pixels(48, 64)))
    for step, count in before.items():
        assert metric(triton.metrics_port, name.format(step)) == count + 1


def test_an_interactive_request_overtakes_bulk(triton):
    """A photograph of level 1 arrives while four bulk photographs wait, and is served next."""
    done, photograph = [], encode_image(pixels(48, 64))
    pending = r'nv_inference_pending_request_count\{{model="{}",version="1"\}}'

    def send(connection, name, priority):
        image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
        connection.async_infer(
            "enhance", [image], lambda result, error: done.append((name, error)), priority=priority, client_timeout=120
        )

    with client(triton.url) as connection:
        for number in range(5):
            send(connection, f"bulk {number}", 2)
        deadline = time.monotonic() + 60
        while sum(metric(triton.metrics_port, pending.format(model)) for model in ("preprocess", "restormer")) < 4:
            assert time.monotonic() < deadline
        send(connection, "interactive", 1)
        while len(done) < 6 and time.monotonic() < deadline + 60:
            time.sleep(0.05)
    assert [error for _, error in done if error] == []
    assert [name for name, _ in done].index("interactive") <= 2


def test_preflight_reports_problems_of_flags_and_variables(repository, certificates, tmp_path):
    command = [
        sys.executable.replace("/build/", "/server/"), "-m", "server", "--repository", str(repository),
        "--state", str(tmp_path), "--tls-cert", str(certificates["server_cert"]),
        "--tls-key", str(certificates["client_key"]), "preflight",
    ]  # fmt: skip
    environment = {**os.environ, "RESTORMER_CONTROL": "explicit"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "belong together" in done.stdout
    assert "--admin-key-file=" in done.stdout
    assert "Traceback" not in done.stderr
