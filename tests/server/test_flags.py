"""Triton's command line, the served configs, and what is read from the host."""

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

import hosts
from benchmarks.pipeline.imaging import GPU_RATE
from imaging import Limits
from server import assemble, host, preflight
from server.__main__ import main, parse_arguments
from server.errors import ServerError
from server.process import deep_check_command, environment_without_proxies, triton_environment
from server.settings import HARDWARE, RESTRICTED, Settings
from tests.conftest import CARDS, ROOT, free_port

TRITON = ROOT / ".envs/triton/pytriton/tritonserver/bin/tritonserver"
NEWEST = frozenset({"allow-client-shm", "http-max-input-size"})


def flags(known=(), rate_limits=(), gpus=0, pinned_mib=0, **options):
    return Settings(**options).flags("the-key", known, dict(rate_limits), gpus, pinned_mib)


def test_by_default_the_server_is_closed_and_on_loopback():
    command = flags()
    for flag in (
        "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1", "--allow-http=false", "--model-control-mode=none",
        "--disable-auto-complete-config", "--strict-readiness=true", "--exit-timeout-secs=30", "--log-verbose=0",
        "--metrics-config=summary_latencies=true",
    ):  # fmt: skip
        assert flag in command
    assert f"--grpc-restricted-protocol={','.join(RESTRICTED)}:admin-key=the-key" in command
    assert not [flag for flag in command if re.match("--.*(ssl|trace-|cache|http-port|load-model|client-shm)", flag)]


def test_each_setting_becomes_its_flags():
    pem = Path("/a.pem")
    assert "--grpc-use-ssl=true" in flags(tls_cert=pem, tls_key=pem)
    assert "--grpc-use-ssl-mutual=true" not in flags(tls_cert=pem, tls_key=pem)
    assert "--grpc-use-ssl-mutual=true" in flags(tls_cert=pem, tls_key=pem, tls_ca=pem)
    assert "--trace-config=opentelemetry,url=http://c:4318/v1/traces" in flags(trace="http://c:4318/v1/traces")
    assert "--cache-config=local,size=1048576" in flags(cache_mb=1)
    assert "--load-model=*" in flags(control="explicit")
    assert "--grpc-max-connection-age=60000" in flags(grpc_connection_age=60)
    policies = ("gpu_0,numa-node=0", "gpu_1,cpu-cores=56-111")
    _, settings = parse_arguments(["--host-policy", " ".join(policies), "start"])
    assert {f"--host-policy={policy}" for policy in policies} <= set(settings.flags("the-key", (), {}))
    on = flags(http_port=8000)
    assert f"--http-restricted-api={','.join(RESTRICTED)}:admin-key=the-key" in on
    assert "--http-address=127.0.0.1" in on


def test_flags_of_newer_releases_are_passed_only_to_them():
    newer = [flag for flag in flags(NEWEST, http_port=8000) if flag not in flags(http_port=8000)]
    assert newer == ["--allow-client-shm=false", f"--http-max-input-size={Limits().bytes}"]


def test_nvidias_installation_replaces_the_wheel():
    command = flags(triton=Path("/opt/tritonserver"), cache_mb=1)
    assert command[0] == "/opt/tritonserver/bin/tritonserver"
    assert "--backend-directory=/opt/tritonserver/backends" in command
    assert "--cache-directory=/opt/tritonserver/caches" in command


def test_the_local_triton_has_every_flag(tmp_path):
    known = host.triton_options(TRITON, triton_environment(Settings()))
    pem = tmp_path / "a.pem"
    everything = flags(
        known, {"cores": 1}, tls_cert=pem, tls_key=pem, tls_ca=pem, http_port=8000, control="explicit",
        trace="http://c", cache_mb=1, grpc_connection_age=1, gpus=1, host_policy=("gpu_0,numa-node=0",),
    )  # fmt: skip
    assert len(known) > 80
    assert {flag.removeprefix("--").split("=")[0] for flag in everything[1:]} <= known


def test_a_program_that_cannot_run_has_no_options(tmp_path):
    assert host.triton_options(tmp_path / "nothing", {}) == frozenset()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--grpc-port", "0"), ("--grpc-port", "70000"), ("--grpc-port", "many"), ("--control", "poll"),
        ("--hardware", "abacus"), ("--cache-mb", "x"), ("--start-timeout", "0"),
        ("--host-policy", "gpu_0"), ("--host-policy", "gpu_0,cores=1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_variable", [False, True])
def test_an_invalid_setting_is_reported_in_one_line(flag, value, as_variable, monkeypatch, capsys):
    """As a flag and as a variable."""
    if as_variable:
        monkeypatch.setenv("RESTORMER" + flag.upper().replace("-", "_").removeprefix("_"), value)
    with pytest.raises(SystemExit) as exited:
        main(["preflight"] if as_variable else [flag, value, "preflight"])
    assert exited.value.code == 2
    message = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{value}.*\n", message)


@pytest.mark.parametrize(
    ("cards", "name"),
    [
        ([], "gpu"), ([("NVIDIA A100-SXM4-80GB", "8.0")], "a100"), ([("NVIDIA H100 80GB HBM3", "9.0")] * 8, "h100"),
        ([("NVIDIA H200", "9.0")], "h200"), ([("NVIDIA L40S", "8.9")], "gpu"),
        ([("NVIDIA H100 PCIe", "9.0"), ("NVIDIA A100-PCIE-40GB", "8.0")], "gpu"),
        ([("NVIDIA H100 NVL", "9.0")], "h100"), ([("GRID A100-10C", "8.0")], "a100"),
        ([("NVIDIA RTX A1000", "8.6")], "gpu"), ([("NVIDIA RTX A1000 Laptop GPU", "8.6")], "gpu"),
        ([("NVIDIA GH200 480GB", "9.0")], "gpu"), ([("NVIDIA A100X", "8.0")], "gpu"),
        ([("NVIDIA H1000", "9.0")], "gpu"), ([("NVIDIA H200", "9.0"), ("NVIDIA GH200 480GB", "9.0")], "gpu"),
    ],
)  # fmt: skip
def test_the_hardware_follows_from_the_gpus(cards, name):
    assert host.hardware_from_gpus(cards) == name


UUIDS = [uuid for _, _, uuid in CARDS]
VISIBLE = [  # CUDA_VISIBLE_DEVICES and the cards that CUDA then uses
    (None, [0, 1, 2]), ("", []), (" ", []), ("-1", []), ("NoDevFiles", []), ("3", []), ("0,1,2", [0, 1, 2]),
    ("2", [2]), ("2,0", [2, 0]), ("0, 1", [0, 1]), ("0,-1,1", [0]), ("0,7,1", [0]), (UUIDS[2], [2]),
    (f"{UUIDS[1]},{UUIDS[0]}", [1, 0]), ("GPU-0123", [2]), ("GPU-89", []), ("GPU-893", [0]), ("GPU-f", []),
    ("GPU-", []), ("0,GPU-0123", [0, 2]), ("9.0", []), ("MIG-3f1e6a1c-5b5e-5f5e-8b5e-3f1e6a1c5b5e", [0, 1, 2]),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "expected"), VISIBLE)
def test_cuda_visible_devices_selects_gpus_as_cuda_does(chosen, expected, gpu_host, monkeypatch):
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert hosts.gpus() == [CARDS[number][:2] for number in expected]


def test_the_wheel_serves_on_the_cpu_by_default(gpu_host):
    assert assemble.resolve_hardware(Settings()) == "cpu"
    assert assemble.resolve_hardware(Settings(hardware="h100")) == "h100"
    nvidias = Settings(triton=Path("/opt/tritonserver"))
    assert assemble.resolve_hardware(nvidias) == "gpu"


def test_nvidias_triton_serves_on_the_visible_gpus(gpu_host, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert assemble.resolve_hardware(Settings(triton=Path("/opt/tritonserver"))) == "h100"


@pytest.mark.parametrize(
    ("arguments", "hardware"),
    [
        (["serve"], None), (["serve", "HARDWARE=cpu"], "cpu"), (["serve", "HARDWARE=h100"], "h100"), (["demo"], "cpu"),
    ],
)  # fmt: skip
def test_make_passes_the_hardware(arguments, hardware):
    done = subprocess.run(["make", *arguments, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = done.stdout.replace("\\\n", " ").splitlines()[-1]
    flags = shlex.split(command)
    assert (flags[flags.index("--hardware") + 1] if "--hardware" in flags else None) == hardware


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 1 << 16), ("250000 100000", 2), ("50000 100000", 0)])
def test_the_quota_of_cgroup_v2_limits_the_cores(tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert host._quota(tmp_path) == expected
    assert 1 <= host.cores(tmp_path) <= max(1, expected)


def test_the_quota_of_cgroup_v1_limits_the_cores(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert host.cores(tmp_path) == 1


def test_the_tensorrt_version_is_read_from_the_librarys_name(tmp_path):
    assert host.tensorrt_version([tmp_path]) == ""
    (tmp_path / "libnvinfer.so.11").touch()
    (tmp_path / "libnvinfer.so.11.4.1").touch()
    assert host.tensorrt_version([tmp_path]) == "11.4.1"


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 16, 64, 224])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_cores_are_shared_in_proportion_to_the_work(cores, on_gpu):
    counts = assemble.share_cores(cores, on_gpu=on_gpu)
    assert all(count >= 1 for count in counts.values())
    assert sum(counts.values()) == min(assemble.MAX_PROCESSES, max(2, cores - 1 if on_gpu else cores // 4))
    if cores >= 16 and on_gpu:
        ratio = assemble.WORK_MS["postprocess"] / assemble.WORK_MS["preprocess"]
        assert counts["postprocess"] / counts["preprocess"] == pytest.approx(ratio, rel=0.3)


def test_the_shared_memory_of_compose_is_enough_on_224_cores(monkeypatch):
    """Without the maximum, 224 cores would start 223 processes with 7 GB."""
    monkeypatch.setattr(host, "cores", lambda: 224)
    compose = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    given = int(re.search(r"^  shm_size: \$\{SHM_SIZE:-(\d+)g\}", compose, re.MULTILINE)[1]) << 30
    need, _ = preflight.shared_memory_need(Settings(repository=REPOSITORY, hardware="h100"))
    assert need == (assemble.MAX_PROCESSES + 3) * 32 << 20
    assert need <= given


def test_the_maximum_of_processes_is_enough_for_eight_gpus():
    seconds = sum(assemble.WORK_MS.values()) / 1000
    assert assemble.MAX_PROCESSES / seconds >= 8 * GPU_RATE
    assert assemble.share_cores(112, on_gpu=True) == {"preprocess": 29, "postprocess": 82}  # as docs/scaling.md says


def test_a_python_stub_uses_one_openblas_thread_by_default_and_nothing_of_the_users_python(monkeypatch):
    users = {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONWARNINGS", "PYTHONHOME", "BASH_ENV"}
    for name in users:
        monkeypatch.setenv(name, "/mine")
    monkeypatch.setattr("server.process.libpython_folder", lambda: Path("/lib"))
    for settings in (Settings(), Settings(triton=Path("/opt/tritonserver"))):
        environment = triton_environment(settings)
        assert environment["OPENBLAS_NUM_THREADS"] == environment["OMP_NUM_THREADS"] == "1"
        assert not users & set(environment)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert triton_environment(Settings())["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("address", "listens", "reached"),
    [
        ("127.0.0.1", "127.0.0.1:8001", "127.0.0.1:8001"), ("0.0.0.0", "0.0.0.0:8001", "127.0.0.1:8001"),
        ("::", "[::]:8001", "[::1]:8001"), ("fd00::2", "[fd00::2]:8001", "[fd00::2]:8001"),
    ],
)  # fmt: skip
def test_a_server_on_all_addresses_is_reached_on_loopback(address, listens, reached):
    settings = Settings(address=address)
    assert (settings.url, settings.local_url) == (listens, reached)
    assert settings.metrics_url == f"http://{reached.replace('8001', '8002')}/metrics"
    assert f"--grpc-address={listens.removesuffix(':8001')}" in flags(address=address)
    assert reached in deep_check_command(settings, 1)


@pytest.mark.parametrize("proxy", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
def test_triton_and_the_deep_check_use_no_proxy(monkeypatch, proxy):
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    assert proxy not in environment_without_proxies()
    assert proxy not in triton_environment(Settings(triton=Path("/opt/tritonserver")))


@pytest.mark.parametrize("variable", ["PYTHONHOME", "PYTHONPATH"])
def test_the_deep_check_uses_nothing_of_the_users_python(variable, monkeypatch, tmp_path):
    (tmp_path / "restormer_client.py").write_text("raise ImportError")
    monkeypatch.setenv(variable, str(tmp_path))
    command = deep_check_command(Settings(grpc_port=free_port()), 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: 127.0.0.1:")


def test_the_deep_check_trusts_only_the_servers_own_certificate():
    """``tls_ca`` is the clients' authority and may differ from that of the server's certificate."""
    cert, key, ca = Path("s.pem"), Path("s.key"), Path("clients.pem")
    command = deep_check_command(Settings(tls_cert=cert, tls_key=key, tls_ca=ca, tls_name="triton.example"), 1)
    options = dict(itertools.pairwise(command))
    assert (options["--tls-ca"], options["--tls-cert"], options["--tls-key"]) == ("s.pem", "s.pem", "s.key")
    assert options["--tls-name"] == "triton.example"


def test_the_work_is_the_recorded_one():
    measured = json.loads((ROOT / "benchmarks/results/imaging.json").read_text())["sizes"]["12"]
    assert {name: round(measured[name]) for name in assemble.WORK_MS} == assemble.WORK_MS


REPOSITORY = ROOT / "model_repository"


def config(model, **options):
    return assemble.served_config(Settings(repository=REPOSITORY, **options), REPOSITORY / model)


def test_the_served_config_differs_from_the_published_one_only_in_instances():
    def published(name):
        return text_format.Parse((REPOSITORY / name).read_text(encoding="utf-8"), ModelConfig())

    assert config("preprocess", hardware="h100", preprocess_instances=2) == published("preprocess/config.pbtxt")
    assert config("preprocess", hardware="cpu", preprocess_instances=1) == published("preprocess/configs/cpu.pbtxt")
    assert config("preprocess", hardware="cpu", preprocess_instances=7).instance_group[0].count == 7
    assert config("restormer", hardware="gpu") == published("restormer/config.pbtxt")
    assert config("enhance", hardware="h100") == published("enhance/config.pbtxt")
    assert config("enhance", hardware="cpu") == published("enhance/configs/cpu.pbtxt")


def test_the_served_files_keep_every_field(tmp_path, monkeypatch):
    """Including the field that only the newest schemas have."""
    monkeypatch.setattr(host, "cores", lambda: 16)
    settings = Settings(repository=REPOSITORY, state=tmp_path, hardware="h100")
    assemble.assemble_repository(settings)
    files = {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("served/*/config.pbtxt")}
    for model, text in files.items():
        assert text_format.Parse(text, ModelConfig()) == config(model, hardware="h100")
    assert "max_inflight_requests: 160\n" in files["enhance"]


@pytest.mark.parametrize(("instances", "threads"), [(0, "5"), (2, "2"), (8, "1")])
def test_the_networks_threads_are_its_share_of_the_cores(monkeypatch, instances, threads):
    """Of those that this process may use: its container may have a quota, which OpenVINO does not know."""
    monkeypatch.setattr(host, "cores", lambda: 5)
    assert served_core(hardware="cpu", core_instances=instances).parameters["threads"].string_value == threads
    assert "threads" not in served_core(hardware="h100").parameters


SERVED_CORE = {  # backend, kind, instances, delay of the batcher, preferred sizes
    "cpu": ("python", "KIND_CPU", 1, 0, [1]),
    "gpu": ("tensorrt_plan", "KIND_GPU", 1, 2000, []),
    "a100": ("tensorrt_plan", "KIND_GPU", 1, 2600, []),
    "h100": ("tensorrt_plan", "KIND_GPU", 2, 1500, []),
    "h200": ("tensorrt_plan", "KIND_GPU", 2, 1100, []),
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
def test_a_known_gpu_differs_from_others_only_in_delay_and_instances(gpu):
    usual, known = served_core(hardware="gpu"), served_core(hardware=gpu)
    known.dynamic_batching.max_queue_delay_microseconds = usual.dynamic_batching.max_queue_delay_microseconds
    known.instance_group[0].count = usual.instance_group[0].count
    assert known == usual


def test_a_setting_takes_precedence_over_the_hardwares_value():
    core = served_core(hardware="h100", core_instances=3, core_delay_us=0)
    assert (core.instance_group[0].count, core.dynamic_batching.max_queue_delay_microseconds) == (3, 0)


def test_auto_serves_the_values_of_the_visible_gpus(gpu_host, monkeypatch):
    assert served_core() == served_core(hardware="cpu")
    nvidias = Path("/opt/tritonserver")
    for visible, hardware in (("0,1", "h100"), ("2", "gpu"), ("0,1,2", "gpu"), ("", "gpu")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        hosts.gpus.cache_clear()
        assert served_core(triton=nvidias) == served_core(hardware=hardware)


def rate_limits(**options):
    return assemble.rate_limits(Settings(repository=REPOSITORY, **options))


def test_the_rate_limiter_has_a_resource_for_each_instance_of_a_cpus_network():
    assert rate_limits(hardware="cpu") == {"cores": 1}
    assert rate_limits(hardware="cpu", core_instances=3) == {"cores": 3}
    limited = set(flags(rate_limits={"cores": 3})) - set(flags())
    assert limited == {"--rate-limit=execution_count", "--rate-limit-resource=cores:3"}


@pytest.mark.parametrize("hardware", [name for name in HARDWARE if name not in ("auto", "cpu")])
def test_a_gpu_host_starts_without_the_rate_limiter(hardware):
    assert rate_limits(hardware=hardware) == {}
    assert not [flag for flag in flags() if flag.startswith("--rate-limit")]


def test_only_restormer_has_a_response_cache():
    options = {"hardware": "cpu", "cache_mb": 64}
    cached = {model.name: config(model.name, **options).response_cache.enable for model in REPOSITORY.iterdir()}
    assert [name for name, is_cached in cached.items() if is_cached] == ["restormer"]


def test_the_requested_versions_are_served():
    policy = config("restormer", hardware="cpu", versions=(1, 2)).version_policy
    assert list(policy.specific.versions) == [1, 2]
    assert not policy.HasField("latest")


def test_a_batch_above_the_configs_maximum_is_rejected():
    with pytest.raises(ServerError, match="--core-batch=9: the engine takes 8 at most"):
        config("restormer", hardware="h100", core_batch=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'name: "postprocess"', "0 entries in instance_group"), (b"instance_group [ {}, {} ]", "2 entries"),
        (b"instance_group [ { count: 1 } ]\nno_such_field: 1", r"config\.pbtxt: 2:1 .*no_such_field"),
        (b"instance_group [ {", r"config\.pbtxt: 1:"), (b'name: "\xff"', r"config\.pbtxt: .*utf-8"),
    ],
)  # fmt: skip
def test_an_invalid_config_is_rejected_in_one_line(tmp_path, text, message):
    model = tmp_path / "postprocess"
    model.mkdir()
    (model / "config.pbtxt").write_bytes(text)
    with pytest.raises(ServerError, match=f"{message}.*restore it from the project"):
        assemble.served_config(Settings(repository=tmp_path, hardware="cpu"), model)


def test_the_published_repository_is_only_read(repository, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    settings = Settings(repository=repository, state=tmp_path, hardware="cpu")
    assemble.assemble_repository(settings)
    assemble.assemble_repository(settings)  # over the first
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before
    assert (tmp_path / "served/restormer/1/model.onnx").samefile(repository / "restormer/1/model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]


def test_a_folder_without_restormer_is_rejected(tmp_path):
    with pytest.raises(ServerError, match="not a restormer repository"):
        assemble.assemble_repository(Settings(repository=tmp_path, state=tmp_path / "state"))
