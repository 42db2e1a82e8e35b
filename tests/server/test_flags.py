"""The one list of flags, and the configs that are served."""

import itertools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from benchmarks.pipeline.imaging import GPU_RATE
from export import machine as build_machine
from imaging import Limits
from server import assemble as served
from server import host as machine
from server import preflight
from server.__main__ import _FLAGS, main
from server.errors import ServerError
from server.process import deep_check, environment
from server.settings import HARDWARE, RESTRICTED, Settings
from tests.conftest import CARDS, ROOT, SERVER_PYTHON

TRITON = ROOT / ".envs/triton/pytriton/tritonserver/bin/tritonserver"
NEWEST = frozenset({"allow-client-shm", "http-max-input-size"})


def flags(known=(), rate_limits=(), **options):
    return Settings(**options).flags("the-key", known, dict(rate_limits))


def test_unless_told_otherwise_everything_is_loopback_and_closed():
    made = flags()
    for flag in (
        "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1", "--allow-http=false", "--model-control-mode=none",
        "--disable-auto-complete-config", "--strict-readiness=true", "--exit-timeout-secs=30", "--log-verbose=0",
        "--metrics-config=summary_latencies=true",
    ):  # fmt: skip
        assert flag in made
    assert f"--grpc-restricted-protocol={','.join(RESTRICTED)}:admin-key=the-key" in made
    assert not [flag for flag in made if re.match("--.*(ssl|trace-|cache|http-port|load-model|client-shm)", flag)]


def test_each_setting_becomes_its_flags():
    pem = Path("/a.pem")
    assert "--grpc-use-ssl=true" in flags(tls_cert=pem, tls_key=pem)
    assert "--grpc-use-ssl-mutual=true" not in flags(tls_cert=pem, tls_key=pem)
    assert "--grpc-use-ssl-mutual=true" in flags(tls_cert=pem, tls_key=pem, tls_ca=pem)
    assert "--trace-config=opentelemetry,url=http://c:4318/v1/traces" in flags(trace="http://c:4318/v1/traces")
    assert "--cache-config=local,size=1048576" in flags(cache_mb=1)
    assert "--load-model=*" in flags(control="explicit")
    assert "--grpc-max-connection-age=60000" in flags(grpc_connection_age=60)
    on = flags(http_port=8000)
    assert f"--http-restricted-api={','.join(RESTRICTED)}:admin-key=the-key" in on
    assert "--http-address=127.0.0.1" in on


def test_what_only_newer_servers_know_is_said_to_them_alone():
    newer = [flag for flag in flags(NEWEST, http_port=8000) if flag not in flags(http_port=8000)]
    assert newer == ["--allow-client-shm=false", f"--http-max-input-size={Limits().bytes}"]


def test_nvidias_installation_takes_the_place_of_the_wheel():
    made = flags(triton=Path("/opt/tritonserver"), cache_mb=1)
    assert made[0] == "/opt/tritonserver/bin/tritonserver"
    assert "--backend-directory=/opt/tritonserver/backends" in made
    assert "--cache-directory=/opt/tritonserver/caches" in made


def test_the_local_triton_knows_every_flag_it_is_given(tmp_path):
    known = machine.options(TRITON, environment(Settings()))
    pem = tmp_path / "a.pem"
    everything = flags(
        known, {"cores": 1}, tls_cert=pem, tls_key=pem, tls_ca=pem, http_port=8000, control="explicit",
        trace="http://c", cache_mb=1, grpc_connection_age=1,
    )  # fmt: skip
    assert len(known) > 80
    assert {flag.removeprefix("--").split("=")[0] for flag in everything[1:]} <= known


def test_a_program_that_tells_no_options_knows_none(tmp_path):
    assert machine.options(tmp_path / "nothing", {}) == frozenset()


def test_every_setting_has_a_flag_and_a_variable(monkeypatch, capsys, tmp_path):
    assert set(_FLAGS) == set(Settings.__dataclass_fields__)
    monkeypatch.setenv("RESTORMER_GRPC_PORT", "70000")
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 2
    assert "70000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RESTORMER_CONTROL", "poll"), ("RESTORMER_HARDWARE", "abacus"), ("RESTORMER_CACHE_MB", "x")],
)
def test_a_wrong_variable_is_one_line(variable, value, tmp_path):
    done = subprocess.run(
        [SERVER_PYTHON, "-m", "server", "preflight"], cwd=ROOT, env={**os.environ, variable: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert value in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("cards", "name"),
    [
        ([], "cpu"), ([("NVIDIA A100-SXM4-80GB", "8.0")], "a100"), ([("NVIDIA H100 80GB HBM3", "9.0")] * 8, "h100"),
        ([("NVIDIA H200", "9.0")], "h200"), ([("NVIDIA L40S", "8.9")], "gpu"),
        ([("NVIDIA H100 PCIe", "9.0"), ("NVIDIA A100-PCIE-40GB", "8.0")], "gpu"),
        ([("NVIDIA H100 NVL", "9.0")], "h100"), ([("GRID A100-10C", "8.0")], "a100"),
        ([("NVIDIA RTX A1000", "8.6")], "gpu"), ([("NVIDIA RTX A1000 Laptop GPU", "8.6")], "gpu"),
        ([("NVIDIA GH200 480GB", "9.0")], "gpu"), ([("NVIDIA A100X", "8.0")], "gpu"),
        ([("NVIDIA H1000", "9.0")], "gpu"), ([("NVIDIA H200", "9.0"), ("NVIDIA GH200 480GB", "9.0")], "gpu"),
    ],
)  # fmt: skip
def test_the_configs_are_chosen_by_the_cards(cards, name):
    assert machine.hardware(cards) == name


UUIDS = [uuid for _, _, uuid in CARDS]
VISIBLE = [  # CUDA_VISIBLE_DEVICES and the cards it leaves, by CUDA's rules
    (None, [0, 1, 2]), ("", []), (" ", []), ("-1", []), ("NoDevFiles", []), ("3", []), ("0,1,2", [0, 1, 2]),
    ("2", [2]), ("2,0", [2, 0]), ("0, 1", [0, 1]), ("0,-1,1", [0]), ("0,7,1", [0]), (UUIDS[2], [2]),
    (f"{UUIDS[1]},{UUIDS[0]}", [1, 0]), ("GPU-0123", [2]), ("GPU-89", []), ("GPU-893", [0]), ("GPU-f", []),
    ("GPU-", []), ("0,GPU-0123", [0, 2]), ("9.0", []), ("MIG-3f1e6a1c-5b5e-5f5e-8b5e-3f1e6a1c5b5e", [0, 1, 2]),
]  # fmt: skip


@pytest.mark.parametrize("room", [machine, build_machine])
@pytest.mark.parametrize(("chosen", "expected"), VISIBLE)
def test_only_visible_gpus_count(room, chosen, expected, gpu_host, monkeypatch):
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [*room.gpus()] == [CARDS[number][:2] for number in expected]


def test_the_wheel_serves_on_the_cpu_whatever_the_host_has(gpu_host):
    assert served.hardware(Settings()) == "cpu"
    assert served.hardware(Settings(hardware="h100")) == "h100"
    nvidias = Settings(triton=Path("/opt/tritonserver"))
    assert served.hardware(nvidias) == "gpu"


def test_nvidias_triton_serves_on_the_gpus_that_are_visible(gpu_host, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert served.hardware(Settings(triton=Path("/opt/tritonserver"))) == "h100"


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        (["serve"], None), (["serve", "HARDWARE=cpu"], "cpu"), (["serve", "HARDWARE=h100"], "h100"), (["demo"], "cpu"),
    ],
)  # fmt: skip
def test_make_passes_the_hardware_on(words, passed):
    done = subprocess.run(["make", *words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = done.stdout.replace("\\\n", " ").splitlines()[-1]
    flags = shlex.split(command)
    assert (flags[flags.index("--hardware") + 1] if "--hardware" in flags else None) == passed


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 1 << 16), ("250000 100000", 2), ("50000 100000", 0)])
def test_a_containers_quota_counts(tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert machine._quota(tmp_path) == expected
    assert 1 <= machine.cores(tmp_path) <= max(1, expected)


def test_an_older_cgroup_counts_too(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores(tmp_path) == 1


def test_tensorrt_is_told_by_its_librarys_name(tmp_path):
    assert machine.tensorrt([tmp_path]) == ""
    (tmp_path / "libnvinfer.so.11").touch()
    (tmp_path / "libnvinfer.so.11.4.1").touch()
    assert machine.tensorrt([tmp_path]) == "11.4.1"


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 16, 64, 224])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_processes_are_shared_out_by_the_work(cores, on_gpu):
    sized = served.sized_instances(cores, on_gpu=on_gpu)
    assert all(count >= 1 for count in sized.values())
    assert sum(sized.values()) == min(served.MOST, max(2, cores - 1 if on_gpu else cores // 4))
    if cores >= 16 and on_gpu:
        ratio = served.WORK_MS["postprocess"] / served.WORK_MS["preprocess"]
        assert sized["postprocess"] / sized["preprocess"] == pytest.approx(ratio, rel=0.3)


def test_however_many_cores_the_shared_memory_of_compose_is_enough(monkeypatch):
    """224 of them would start 223 processes, which begin with 7 GB."""
    monkeypatch.setattr(machine, "cores", lambda: 224)
    compose = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    given = int(re.search(r"^  shm_size: \$\{SHM_SIZE:-(\d+)g\}", compose, re.MULTILINE)[1]) << 30
    need, _ = preflight.shared_memory_need(Settings(repository=REPOSITORY, hardware="h100"))
    assert need == (served.MOST + 3) * 32 << 20
    assert need <= given


def test_the_cap_leaves_eight_gpus_fed():
    seconds = sum(served.WORK_MS.values()) / 1000
    assert served.MOST / seconds >= 8 * GPU_RATE


def test_a_pythons_stub_starts_no_threads_of_its_own(monkeypatch):
    monkeypatch.setattr("server.process.libpython_folder", lambda: Path("/lib"))
    for settings in (Settings(), Settings(triton=Path("/opt/tritonserver"))):
        assert environment(settings)["OPENBLAS_NUM_THREADS"] == environment(settings)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(Settings())["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("address", "listens", "asked"),
    [
        ("127.0.0.1", "127.0.0.1:8001", "127.0.0.1:8001"), ("0.0.0.0", "0.0.0.0:8001", "127.0.0.1:8001"),
        ("::", "[::]:8001", "[::1]:8001"), ("fd00::2", "[fd00::2]:8001", "[fd00::2]:8001"),
    ],
)  # fmt: skip
def test_an_address_that_means_all_is_asked_on_loopback(address, listens, asked):
    settings = Settings(address=address)
    assert (settings.url, settings.local_url) == (listens, asked)
    assert settings.metrics_url == f"http://{asked.replace('8001', '8002')}/metrics"
    assert f"--grpc-address={listens.removesuffix(':8001')}" in flags(address=address)
    assert asked in deep_check(settings, 1)


def test_the_deep_check_trusts_the_servers_own_certificate_under_its_name():
    """``tls_ca`` says who may be a client, and may have nothing to do with the server's certificate."""
    cert, key, ca = Path("s.pem"), Path("s.key"), Path("clients.pem")
    made = deep_check(Settings(tls_cert=cert, tls_key=key, tls_ca=ca, tls_name="triton.example"), 1)
    given = dict(itertools.pairwise(made))
    assert (given["--tls-ca"], given["--tls-cert"], given["--tls-key"]) == ("s.pem", "s.pem", "s.key")
    assert given["--tls-name"] == "triton.example"


def test_the_work_is_as_measured():
    measured = json.loads((ROOT / "benchmarks/results/imaging.json").read_text())["sizes"]["12"]
    assert {name: round(measured[name]) for name in served.WORK_MS} == served.WORK_MS


REPOSITORY = ROOT / "model_repository"


def config(model, **options):
    return served.config(Settings(repository=REPOSITORY, **options), REPOSITORY / model)


def test_the_served_config_is_the_published_one_but_for_what_this_start_knows():
    def published(name):
        return text_format.Parse((REPOSITORY / name).read_text(encoding="utf-8"), ModelConfig())

    assert config("preprocess", hardware="h100", preprocess_instances=2) == published("preprocess/config.pbtxt")
    assert config("preprocess", hardware="cpu", preprocess_instances=1) == published("preprocess/configs/cpu.pbtxt")
    assert config("preprocess", hardware="cpu", preprocess_instances=7).instance_group[0].count == 7
    assert config("restormer", hardware="gpu") == published("restormer/config.pbtxt")
    assert config("enhance", hardware="h100") == published("enhance/config.pbtxt")
    assert config("enhance", hardware="cpu") == published("enhance/configs/cpu.pbtxt")


def test_the_served_files_keep_every_field(tmp_path, monkeypatch):
    """Also the one that only the newest schemas know."""
    monkeypatch.setattr(machine, "cores", lambda: 16)
    settings = Settings(repository=REPOSITORY, state=tmp_path, hardware="h100")
    served.assemble(settings)
    files = {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("served/*/config.pbtxt")}
    for model, text in files.items():
        assert text_format.Parse(text, ModelConfig()) == config(model, hardware="h100")
    assert "max_inflight_requests: 160\n" in files["enhance"]


SERVED_CORE = {  # backend, kind, instances, delay of the batcher, preferred sizes
    "cpu": ("python", "KIND_CPU", 1, 0, [1]),
    "gpu": ("tensorrt_plan", "KIND_GPU", 1, 2000, []),
    "a100": ("tensorrt_plan", "KIND_GPU", 1, 4000, []),
    "h100": ("tensorrt_plan", "KIND_GPU", 2, 1500, []),
    "h200": ("tensorrt_plan", "KIND_GPU", 2, 1500, []),
}


def served_core(**options):
    return config("restormer", **options)


@pytest.mark.parametrize("hardware", [name for name in HARDWARE if name != "auto"])
def test_the_network_is_served_with_the_values_of_each_hardware(hardware):
    core = served_core(hardware=hardware)
    (group,) = core.instance_group
    batcher = core.dynamic_batching
    assert SERVED_CORE[hardware] == (
        core.backend or core.platform, ModelInstanceGroup.Kind.Name(group.kind), group.count,
        batcher.max_queue_delay_microseconds, list(batcher.preferred_batch_size),
    )  # fmt: skip
    assert core.max_batch_size == 8
    assert not group.gpus


@pytest.mark.parametrize("gpu", ["a100", "h100", "h200"])
def test_a_known_gpu_differs_from_any_other_only_in_delay_and_instances(gpu):
    usual, known = served_core(hardware="gpu"), served_core(hardware=gpu)
    known.dynamic_batching.max_queue_delay_microseconds = usual.dynamic_batching.max_queue_delay_microseconds
    known.instance_group[0].count = usual.instance_group[0].count
    assert known == usual


def test_a_setting_takes_precedence_over_the_hardwares_value():
    core = served_core(hardware="h100", core_instances=3, core_delay_us=0)
    assert (core.instance_group[0].count, core.dynamic_batching.max_queue_delay_microseconds) == (3, 0)


def test_auto_serves_the_values_of_the_gpus_that_are_visible(gpu_host, monkeypatch):
    assert served_core() == served_core(hardware="cpu")
    nvidias = Path("/opt/tritonserver")
    for visible, hardware in (("0,1", "h100"), ("2", "gpu"), ("0,1,2", "gpu"), ("", "cpu")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        machine.gpus.cache_clear()
        assert served_core(triton=nvidias) == served_core(hardware=hardware)


def rate_limits(**options):
    return served.rate_limits(Settings(repository=REPOSITORY, **options))


def test_the_rate_limiter_has_a_resource_for_each_instance_of_a_cpus_network():
    assert rate_limits(hardware="cpu") == {"cores": 1}
    assert rate_limits(hardware="cpu", core_instances=3) == {"cores": 3}
    limited = set(flags(rate_limits={"cores": 3})) - set(flags())
    assert limited == {"--rate-limit=execution_count", "--rate-limit-resource=cores:3"}


@pytest.mark.parametrize("hardware", [name for name in HARDWARE if name not in ("auto", "cpu")])
def test_a_gpu_host_starts_without_the_rate_limiter(hardware):
    assert rate_limits(hardware=hardware) == {}
    assert not [flag for flag in flags() if flag.startswith("--rate-limit")]


def test_the_cache_is_restormers_alone():
    asked = {"hardware": "cpu", "cache_mb": 64}
    cached = {model.name: config(model.name, **asked).response_cache.enable for model in REPOSITORY.iterdir()}
    assert [name for name, has in cached.items() if has] == ["restormer"]


def test_versions_are_served_as_asked():
    policy = config("restormer", hardware="cpu", versions=(1, 2)).version_policy
    assert list(policy.specific.versions) == [1, 2]
    assert not policy.HasField("latest")


def test_a_batch_larger_than_the_config_allows_is_refused():
    with pytest.raises(ServerError, match="--core-batch=9: restormer's config allows 8"):
        config("restormer", hardware="h100", core_batch=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'name: "postprocess"', "0 entries in instance_group"), (b"instance_group [ {}, {} ]", "2 entries"),
        (b"instance_group [ { count: 1 } ]\nno_such_field: 1", r"config\.pbtxt: 2:1 .*no_such_field"),
        (b"instance_group [ {", r"config\.pbtxt: 1:"), (b'name: "\xff"', r"config\.pbtxt: .*utf-8"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_the_projects_is_refused_in_one_line(tmp_path, text, message):
    model = tmp_path / "postprocess"
    model.mkdir()
    (model / "config.pbtxt").write_bytes(text)
    with pytest.raises(ServerError, match=f"{message}.*take it from the project"):
        served.config(Settings(repository=tmp_path, hardware="cpu"), model)


def test_what_is_published_is_only_read(repository, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    settings = Settings(repository=repository, state=tmp_path, hardware="cpu")
    served.assemble(settings)
    served.assemble(settings)  # over the first
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before
    assert (tmp_path / "served/restormer/1/model.onnx").samefile(repository / "restormer/1/model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(ServerError, match="no model repository of ours"):
        served.assemble(Settings(repository=tmp_path, state=tmp_path / "state"))
