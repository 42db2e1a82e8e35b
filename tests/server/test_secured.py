"""What keeps strangers out really keeps them out, on a real Triton; and what is switched on really works."""

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
from tests.photographs import encoded, opened, pixels
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


def enhanced(made, photograph, **parameters):
    image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
    asked = {name: str(value) for name, value in parameters.items()}
    return made.infer("enhance", [image], parameters=asked, client_timeout=120).as_numpy("ENHANCED").item()


def metric(port, pattern):
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", answer.read().decode(), re.MULTILINE))


def with_a_place(width=64, height=48):
    """A JPEG that says where it was taken, and by whom."""
    image = Image.fromarray(pixels(height, width))
    exif = image.getexif()
    exif[0x013B] = "Somebody Private"
    exif.get_ifd(0x8825).update({1: "N", 2: LATITUDE, 3: "E", 4: LATITUDE})
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_the_client_with_a_certificate_is_served(fortress):
    with fortress.client() as made:
        assert opened(enhanced(made, encoded(pixels(48, 64)))).size == (64, 48)


def test_a_certificate_for_a_name_is_enough_for_the_deep_check(repository, tmp_path):
    """Of triton.example only, mutual, on all addresses: a start returns when the health check's photograph is back."""
    authority = trustme.CA()
    made = authority.issue_cert("triton.example")
    files = {"tls_ca": tmp_path / "ca.pem", "tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "cert.key"}
    authority.cert_pem.write_to_path(str(files["tls_ca"]))
    made.cert_chain_pems[0].write_to_path(str(files["tls_cert"]))
    made.private_key_pem.write_to_path(str(files["tls_key"]))
    files["tls_key"].chmod(0o600)
    command = server_command(
        "start", repository=repository, state=tmp_path / "state", address="0.0.0.0", grpc_port=free_port(),
        metrics_port=free_port(), tls_name="triton.example", **files,
    )  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    stopped = subprocess.run([*command[:-1], "stop"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Triton stopped" in stopped.stderr


@pytest.mark.parametrize("who", ["in the clear", "without a certificate", "a stranger", "trusting another authority"])
def test_everybody_else_is_not(fortress, who):
    tls = fortress.tls
    made = {
        "in the clear": lambda: client(fortress.url),
        "without a certificate": lambda: client(fortress.url, tls["ca"]),
        "a stranger": lambda: client(fortress.url, tls["ca"], tls["stranger_cert"], tls["stranger_key"]),
        "trusting another authority": lambda: client(
            fortress.url, tls["stranger_cert"], tls["client_cert"], tls["client_key"]
        ),
    }[who]()
    with made, pytest.raises(InferenceServerException):
        made.is_server_live(client_timeout=5)


def test_every_restricted_group_is_tried():
    assert set(CALLS) == set(RESTRICTED)


@pytest.mark.parametrize("group", RESTRICTED)
def test_a_restricted_group_opens_to_the_key_and_to_nothing_else(fortress, group):
    with fortress.client() as made:
        for headers in ({}, {"triton-grpc-protocol-admin-key": KEY[:-1]}, {"admin-key": KEY}):
            with pytest.raises(InferenceServerException, match="restricted"):
                CALLS[group](made, headers=headers, client_timeout=10)
        CALLS[group](made, headers=KEY_HEADER, client_timeout=10)


@pytest.mark.parametrize("group", RESTRICTED)
def test_without_a_key_file_the_groups_are_closed_by_a_key_nobody_was_given(triton, group):
    path = triton.state / "admin.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with client(triton.url) as made:
        with pytest.raises(InferenceServerException, match="restricted"):
            CALLS[group](made, client_timeout=10)
        CALLS[group](made, headers={"triton-grpc-protocol-admin-key": path.read_text().strip()}, client_timeout=10)


def test_models_cannot_be_loaded_where_control_is_off(triton):
    key = (triton.state / "admin.key").read_text().strip()
    with client(triton.url) as made, pytest.raises(InferenceServerException, match="polling is enabled|not allowed"):
        made.unload_model("enhance_tiled", headers={"triton-grpc-protocol-admin-key": key})


def test_models_are_loaded_by_whoever_has_the_key(fortress):
    with fortress.client() as made:
        with pytest.raises(InferenceServerException, match="restricted"):
            made.unload_model("enhance_tiled")
        made.unload_model("enhance_tiled", headers=KEY_HEADER)
        deadline = time.monotonic() + 60
        while made.is_model_ready("enhance_tiled") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not made.is_model_ready("enhance_tiled")
        made.load_model("enhance_tiled", headers=KEY_HEADER)
        assert made.is_model_ready("enhance_tiled")


def test_http_is_for_health_and_behind_the_same_key(fortress):
    base = f"http://127.0.0.1:{fortress.http_port}/v2"
    with urlopen(f"{base}/health/ready", timeout=10) as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{base}/models/restormer/stats", timeout=10)
    assert refused.value.code == 403
    with urlopen(Request(f"{base}/models/restormer/stats", headers={"admin-key": KEY}), timeout=10) as answer:
        assert json.load(answer)["model_stats"]


def test_the_cache_keeps_the_networks_answer_and_not_the_photographs(fortress):
    """One photograph at two strengths: the network runs once, the answers differ."""
    photograph = encoded(pixels(90, 120))
    name = r'nv_cache_num_{}_per_model\{{model="{}",version="1"\}}'
    with fortress.client() as made:
        hits, misses = (metric(fortress.metrics_port, name.format(what, "restormer")) for what in ("hits", "misses"))
        whole, half, again = (enhanced(made, photograph, strength=strength) for strength in (1, 0.5, 1))
    assert whole != half
    assert whole == again
    assert metric(fortress.metrics_port, name.format("misses", "restormer")) == misses + 1
    assert metric(fortress.metrics_port, name.format("hits", "restormer")) == hits + 2
    for other in ("enhance", "preprocess", "postprocess", "enhance_tiled"):
        assert metric(fortress.metrics_port, name.format("(?:hits|misses)", other)) == 0


def test_traces_arrive_with_names_and_times_and_without_pixels(fortress):
    photograph = with_a_place()
    with fortress.client() as made:
        enhanced(made, photograph)
    deadline = time.monotonic() + 60
    while not any(b"postprocess" in body for body in fortress.collector.bodies) and time.monotonic() < deadline:
        time.sleep(0.2)
    sent = b"".join(fortress.collector.bodies)
    assert b"restormer-triton" in sent
    assert all(model in sent for model in (b"enhance", b"preprocess", b"restormer", b"postprocess"))
    assert photograph[200:232] not in sent
    assert b"\xff\xd8\xff" not in sent


def test_logs_hold_neither_photographs_nor_places_nor_the_key(fortress):
    """After good photographs, damaged ones and wrong options."""
    photograph = with_a_place()
    with fortress.client() as made:
        enhanced(made, photograph)
        for wrong, options in (
            (photograph[: len(photograph) // 2], {}),
            (photograph, {"strength": 7}),
            (b"x" * 99, {}),
        ):
            with pytest.raises(InferenceServerException):
                enhanced(made, wrong, **options)
    log = fortress.log.read_bytes()
    assert log.isascii()
    assert b"\x00" not in log
    for private in (b"Somebody", b"29.59", b"2959", b"GPS", b"Exif", b"xxxxxxxx", b"\\xff\\xd8", KEY.encode()):
        assert private not in log


def test_histograms_count_photographs(triton):
    name = r'restormer_photograph_ms_count\{{model="{}",version="1"\}}'
    before = {step: metric(triton.metrics_port, name.format(step)) for step in ("preprocess", "postprocess")}
    with client(triton.url) as made:
        enhanced(made, encoded(pixels(48, 64)))
    for step, count in before.items():
        assert metric(triton.metrics_port, name.format(step)) == count + 1


def test_somebody_waiting_goes_before_bulk(triton):
    """By order, not by time: while four bulk photographs wait, a fifth of level 1 comes and is next."""
    done, photograph = [], encoded(pixels(48, 64))
    pending = r'nv_inference_pending_request_count\{{model="{}",version="1"\}}'

    def send(made, name, priority):
        image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[photograph]], dtype=np.object_))
        made.async_infer(
            "enhance", [image], lambda result, error: done.append((name, error)), priority=priority, client_timeout=120
        )

    with client(triton.url) as made:
        for number in range(5):
            send(made, f"bulk {number}", 2)
        deadline = time.monotonic() + 60
        while sum(metric(triton.metrics_port, pending.format(model)) for model in ("preprocess", "restormer")) < 4:
            assert time.monotonic() < deadline
        send(made, "waiting", 1)
        while len(done) < 6 and time.monotonic() < deadline + 60:
            time.sleep(0.05)
    assert [error for _, error in done if error] == []
    assert [name for name, _ in done].index("waiting") <= 2


def test_two_engines_can_be_served_side_by_side_and_a_version_alone(repository, tmp_path):
    """What `--versions` writes; the canary command serves two for real."""
    from server import assemble as served
    from server.settings import Settings

    made = served.config(Settings(repository=repository, hardware="cpu", versions=(1, 2)), repository / "restormer")
    assert list(made.version_policy.specific.versions) == [1, 2]


def test_the_flags_files_are_looked_at_before_triton_is(repository, certificates, tmp_path):
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
