"""Check docker/compose.yaml against the server's settings and against Compose, without starting a container."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from operations import verify_gpu
from server.health import SECONDS
from server.process import STOP_SECONDS
from server.settings import Settings
from tests.conftest import ROOT

COMPOSE = ROOT / "docker/compose.yaml"
FILE = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
SERVICES = FILE["services"]
SERVERS = ("triton", "triton-cpu")
_spec = importlib.util.spec_from_file_location("perf", ROOT / "docker/perf.py")
perf = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(perf)


def read_lock(name):
    """Return the pinned packages of a lock file."""
    return set(
        re.findall(r"^(\S+==\S+)", (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )


def parse_seconds(text):
    """Return the seconds of ``45s``, or of the default of ``${NAME:-45s}``."""
    return float(re.fullmatch(r"(?:\$\{\w+:-)?(\d+)s\}?", text)[1])


def test_the_services_and_their_profiles():
    assert set(SERVICES) == {"triton", "triton-cpu", "builder", "perf", "prometheus", "grafana"}
    assert "profiles" not in SERVICES["triton"]  # docker compose up triton
    assert SERVICES["triton-cpu"]["profiles"] == ["cpu"]
    assert "COMPOSE_FILE=docker/compose.yaml" in (ROOT / ".env").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    user = service["user"].replace("${BUILDER_USER:-", "").rstrip("}")
    assert user.split(":")[0] not in ("0", "root")
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"]["max-size"]
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    assert service["ulimits"]["core"] == 0
    assert all("size=" in tmpfs for tmpfs in service.get("tmpfs", []))


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name):
    """Every image has the tag of a release, never ``latest``; a variable can replace it by a digest."""
    image = SERVICES[name]["image"]
    base = SERVICES[name].get("build", {}).get("args", {}).get("BASE", "")
    for text in filter(None, (image, base)):
        assert "latest" not in text
        tag = re.sub(r"\$\{TRITON_RELEASE:-([\d.]+)\}", r"\1", text).rstrip("}").rsplit(":", 1)[1]
        assert re.search(r"\d+\.\d+", tag), text


def test_server_builder_and_perf_use_one_release():
    texts = [
        SERVICES["triton"]["build"]["args"]["BASE"],
        SERVICES["builder"]["build"]["args"]["BASE"],
        SERVICES["perf"]["image"],
    ]
    assert all("${TRITON_RELEASE:-" in text for text in texts)
    releases = set(re.findall(r"TRITON_RELEASE:-([\d.]+)", COMPOSE.read_text())) | set(
        re.findall(r"TRITON_RELEASE=([\d.]+)", (ROOT / ".env").read_text())
    )
    assert len(releases) == 1
    for dockerfile in ("triton", "builder"):
        text = (ROOT / f"docker/{dockerfile}.Dockerfile").read_text(encoding="utf-8")
        assert re.findall(r"^ARG BASE=.*:([\d.]+)-py3$", text, re.MULTILINE) == list(releases)


@pytest.mark.parametrize("name", SERVERS)
def test_servers_mount_read_only_and_publish_only_grpc(name):
    service = SERVICES[name]
    assert [volume.endswith(":ro") for volume in service["volumes"]] == [True, True]
    assert service["ports"] == ["${BIND_ADDRESS:-127.0.0.1}:${GRPC_PORT:-8001}:8001"]
    assert service["restart"] == "unless-stopped"
    assert set(service["networks"]) == {"clients", "metrics"}


@pytest.mark.parametrize("name", [name for name in SERVICES if "ports" in SERVICES[name]])
def test_ports_are_on_loopback_by_default(name):
    assert all(re.match(r"(\$\{BIND_ADDRESS:-)?127\.0\.0\.1", port) for port in SERVICES[name]["ports"])


def test_folders_mounted_for_writing_exist_in_a_fresh_clone():
    """Docker would create missing ones as root, and the builder is not root."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = [re.fullmatch(r"\$\{\w+:-\.\./(\w+)\}:\S+", volume)[1] for volume in SERVICES["builder"]["volumes"]]
    assert folders == ["model_repository", "engines"]
    for folder in folders:
        assert re.search(f"^{folder}/", tracked, re.MULTILINE), folder


def test_perf_mounts_only_the_key():
    secrets = [volume for volume in SERVICES["perf"]["volumes"] if "/run/secrets" in str(volume)]
    assert [volume["target"] for volume in secrets] == [str(perf.KEY_FILE)]
    assert secrets[0]["read_only"] is True
    assert secrets[0]["bind"]["create_host_path"] is False  # else Docker creates a folder there


def test_the_manual_lists_the_defaults_of_the_file():
    manual = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| ([^|]+) \|", manual.split("## Settings")[1], re.MULTILINE)
    listed = {}
    for names, values in rows:
        names = re.findall(r"\w+", names)
        listed |= dict(zip(names, values.split(","), strict=False)) if len(names) > 1 else {names[0]: values}
    text = COMPOSE.read_text(encoding="utf-8")
    names = "BIND_ADDRESS GRPC_PORT SHM_SIZE TRITON_MEMORY TRITON_CPUS STOP_GRACE TRITON_RELEASE BUILDER_USER"
    for name in (*names.split(), "METRICS_RETENTION", "METRICS_SIZE"):
        default = re.search(rf"\$\{{{name}:-([^}}]*)\}}", text)[1]
        assert re.match(rf"\s*{re.escape(default)}(\D|$)", listed[name]), name
    assert f"`RESTORMER_EXIT_TIMEOUT` ({Settings().exit_timeout:g})" in manual


def test_manual_checklist_and_perf_use_one_command_for_the_key():
    assert perf.MAKE_KEY in (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    assert any(perf.MAKE_KEY in step.command for step in verify_gpu.list_steps())


def run_perf(*arguments):
    return subprocess.run([sys.executable, perf.__file__, *arguments], capture_output=True, text=True, check=False)


def test_perf_names_the_command_that_makes_a_missing_key(tmp_path):
    done = run_perf("--photographs", ROOT / "demo/photos", "--key-file", tmp_path / "none")
    assert done.returncode == 1
    assert perf.MAKE_KEY in done.stderr
    assert "Traceback" not in done.stderr


def test_perf_passes_key_and_certificates_to_perf_analyzer(tmp_path):
    """A stub of perf_analyzer prints its arguments."""
    analyzer = tmp_path / "perf_analyzer"
    analyzer.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    analyzer.chmod(0o755)
    (tmp_path / "key").write_text("abc\n")
    done = subprocess.run(
        [sys.executable, perf.__file__, "--photographs", ROOT / "demo/photos", "--key-file", tmp_path / "key",
         "--tls-ca", "ca.crt", "--", "--concurrency-range", "1"],
        capture_output=True, text=True, check=True, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    passed = ast.literal_eval(done.stdout)
    assert "triton-grpc-protocol-admin-key:abc" in passed
    assert passed[-5:] == ["--ssl-grpc-use-ssl", perf.TLS["tls_ca"], "ca.crt", "--concurrency-range", "1"]


def test_the_egress_network_sorts_before_the_others():
    """Docker uses the gateway of the first network in alphabetical order that is not internal."""
    more = yaml.safe_load((ROOT / "docker/egress.yaml").read_text(encoding="utf-8"))
    (name,) = more["networks"]
    assert not more["networks"][name]  # a network with Docker's defaults, which masquerades
    assert set(more["services"]) == {*SERVERS, "prometheus"}
    for service, added in more["services"].items():
        assert added == {"networks": [name]}
        assert all(name < other for other in SERVICES[service]["networks"])


def test_the_http_file_only_publishes_the_port():
    more = yaml.safe_load((ROOT / "docker/http.yaml").read_text(encoding="utf-8"))["services"]
    assert set(more) == set(SERVERS)
    for added in more.values():
        port = added["environment"]["RESTORMER_HTTP_PORT"]
        assert added == {
            "environment": {"RESTORMER_HTTP_PORT": port},
            "ports": [f"${{BIND_ADDRESS:-127.0.0.1}}:${{HTTP_PORT:-{port}}}:{port}"],
        }


def test_no_network_lets_containers_reach_the_internet():
    for name, network in FILE["networks"].items():
        options = network.get("driver_opts", {})
        assert network.get("internal") or options.get("com.docker.network.bridge.enable_ip_masquerade") == "false", name
    assert SERVICES["builder"]["network_mode"] == "none"


def test_time_limits_leave_room_for_the_server_to_stop():
    for name in SERVERS:
        health = SERVICES[name]["healthcheck"]
        assert parse_seconds(SERVICES[name]["stop_grace_period"]) > Settings().exit_timeout
        # A check that fails stops the server and must not time out meanwhile.
        assert parse_seconds(health["timeout"]) > SECONDS + Settings().exit_timeout + STOP_SECONDS
        assert parse_seconds(health["start_period"]) > 0


def test_compose_passes_every_setting_that_it_does_not_decide():
    passed = {name.removeprefix("RESTORMER_").lower() for name in SERVICES["triton"]["environment"]}
    assert passed <= set(vars(Settings()))
    decided = {
        "repository", "state", "wheel", "triton", "address", "grpc_port", "metrics_address", "metrics_port",
        "http_port", "start_timeout",
    }  # fmt: skip
    assert set(vars(Settings())) - decided == passed


def test_only_triton_and_builder_reserve_gpus():
    def devices(name):
        return SERVICES[name]["deploy"]["resources"].get("reservations", {}).get("devices")

    assert devices("triton")[0]["count"] == "all"
    assert devices("builder")[0]["count"] == 1
    assert not any(devices(name) for name in SERVICES if name not in ("triton", "builder"))
    for name in ("triton", "builder"):
        assert SERVICES[name]["ulimits"]["memlock"] == -1
        assert SERVICES[name]["ulimits"]["stack"] == 67108864


def test_the_gpu_lock_is_the_cpu_lock_without_openvino():
    missing = {line.split("==")[0] for line in read_lock("server") - read_lock("server-gpu")}
    assert read_lock("server-gpu") <= read_lock("server")
    assert missing == {"openvino", "openvino-telemetry"}


@pytest.mark.parametrize("name", ["triton", "triton-cpu", "builder"])
def test_images_run_as_an_unprivileged_user(name):
    text = (ROOT / f"docker/{name}.Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"
    assert "curl" not in text
    assert "wget" not in text


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not on PATH")
def test_compose_accepts_the_file():
    """Needs the docker command with compose v2, but no Docker engine."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose")
    command = ["docker", "compose", "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == set(SERVICES)
    assert services["triton"]["build"]["args"]["BASE"] == "nvcr.io/nvidia/tritonserver:26.11-py3"
    assert services["triton"]["deploy"]["resources"]["reservations"]["devices"][0]["count"] == -1  # all
    files = "docker/compose.yaml:docker/gpus.yaml"
    environment = {**os.environ, "COMPOSE_FILE": files, "TRITON_GPUS": "0,2", "BUILDER_GPU": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    services = json.loads(done.stdout)["services"]
    for name, gpus in (("triton", "0,2"), ("builder", "1")):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device.get("count"), device["device_ids"]) == (None, [gpus])
