"""deploy/kubernetes: what comes out of it, against Kubernetes' own schemas and against what the server says itself."""

import importlib.util
import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

from benchmarks.pipeline.imaging import GPU_RATE
from operations import tune
from server import assemble
from server.health import SECONDS, START_SECONDS, STOP_AT_MOST
from server.preflight import shared_memory_need
from server.process import STOP_SECONDS
from server.settings import Settings
from tests.acceptance import rolling
from tests.conftest import ROOT
from tests.kubernetes.render import by_kubectl, checksum, render, rendered

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu")
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
#: Clusters still in support when this was written, oldest to newest; the oldest knows `sleep` before a stop.
VERSIONS = ("1.30", "1.34", "1.37")
#: Kinds that Kubernetes does not have by itself; their schemas as the operators' projects publish them.
CUSTOM = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}
_spec = importlib.util.spec_from_file_location("rules", FOLDER / "rules.py")
rules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rules)

DOCUMENTS = {name: rendered(FOLDER / "overlays" / name) for name in OVERLAYS}
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH")


def one(overlay, kind):
    (document,) = (d for d in DOCUMENTS[overlay] if d["kind"] == kind)
    return document


def pod(overlay):
    return one(overlay, "Deployment")["spec"]["template"]["spec"]


def triton(overlay):
    (container,) = pod(overlay)["containers"]
    return container


def settings_of(overlay):
    return {name.removeprefix("RESTORMER_").lower(): value for name, value in one(overlay, "ConfigMap")["data"].items()}


def files():
    """Every manifest that is applied as it stands."""
    return [FOLDER / "publisher.yaml", *sorted((FOLDER / "kserve").glob("*.yaml"))]


def kserve():
    return {d["kind"]: d for path in files() for d in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


def by_name(documents):
    return sorted(documents, key=lambda d: (d["kind"], d["metadata"]["name"]))


def with_line(overlay, folder, line):
    """The overlay with a line that is commented out in it."""
    copy = shutil.copytree(FOLDER, folder / "kubernetes") / "overlays" / overlay
    text = (copy / "kustomization.yaml").read_text()
    assert text.count(f"# {line}") == 1
    (copy / "kustomization.yaml").write_text(text.replace(f"# {line}", line))
    return copy


def with_tls(overlay, folder):
    return with_line(overlay, folder, "- ../../components/tls")


CHOICE = tune.Choice(1, 2, 3, 2, 4, 500)


def tuned(overlay, folder):
    """The overlay with what `make tune` wrote."""
    copy = with_line(overlay, folder, "envs: [tuned.env]")
    tune.written(copy / "tuned.env", CHOICE, ["make tune SLO_P99_MS=4000", "a machine"])
    return copy


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_small_renderer_gives_what_kubectl_gives(overlay, tmp_path):
    for folder in (FOLDER / "overlays" / overlay, with_tls(overlay, tmp_path / "a"), tuned(overlay, tmp_path / "b")):
        assert by_name(render(folder)) == by_name(by_kubectl(folder))


def test_the_small_renderer_refuses_what_it_does_not_know(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("namePrefix: a-\n")
    with pytest.raises(AssertionError, match="namePrefix"):
        render(tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_of_kubernetes_own_schema(overlay, version):
    seen = set()
    for document in [*DOCUMENTS[overlay], *(d for d in kserve().values() if d["kind"] == "Pod")]:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)
            seen.add(document["kind"])
    assert seen == {
        "Namespace", "ConfigMap", "Service", "PersistentVolumeClaim", "Deployment", "PodDisruptionBudget",
        "NetworkPolicy", "Pod",
    }  # fmt: skip


def test_the_schemas_find_a_word_that_is_wrong():
    wrong = {**one("cpu", "Service"), "spec": {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("kind", CUSTOM)
def test_the_operators_kinds_are_of_their_schemas(kind):
    """Their models drop what they do not know, so what comes back has to be what went in."""
    for overlay in OVERLAYS:
        document = one(overlay, kind)
        assert back(document) == document
        document = {**document, "spec": {**document["spec"], "bogus": 1}}
        assert back(document) != document


def back(document):
    return CUSTOM[document["kind"]].model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")


# Locked down.


def pods():
    """The spec of every pod that comes of these files; KServe's is put together from its two."""
    runtime, service = kserve()["ServingRuntime"]["spec"], kserve()["InferenceService"]["spec"]["predictor"]
    theirs = {**service, "containers": runtime["containers"], "volumes": runtime["volumes"]}
    return {**{name: pod(name) for name in OVERLAYS}, "publisher": kserve()["Pod"]["spec"], "kserve": theirs}


@pytest.mark.parametrize("name", [*OVERLAYS, "publisher", "kserve"])
def test_nothing_runs_as_root_or_can_write_or_become_more(name):
    """What the namespace's Pod Security standard `restricted` asks for, and a read-only root and limits on top."""
    spec = pods()[name]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(spec)
    kinds = {kind for volume in spec["volumes"] for kind in volume} - {"name"}
    assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret"}
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)
    for container in spec.get("initContainers", []) + spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    for overlay in OVERLAYS:
        labels = one(overlay, "Namespace")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_clients_and_prometheus_reach_the_servers_and_they_reach_nobody(overlay):
    spec = one(overlay, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == []
    assert {rule["ports"][0]["port"]: rule["from"][0] for rule in spec["ingress"]} == {
        "grpc": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"restormer-client": "true"}}},
        "metrics": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_chooses_pods_chooses_the_servers(overlay):
    labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    chosen = [
        one(overlay, "Deployment")["spec"]["selector"]["matchLabels"], one(overlay, "Service")["spec"]["selector"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(overlay, "PodMonitor")["spec"]["selector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod(overlay)["topologySpreadConstraints"]),
    ]  # fmt: skip
    assert chosen == [labels] * len(chosen)
    assert {s["topologyKey"] for s in pod(overlay)["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname", "topology.kubernetes.io/zone",
    }  # fmt: skip
    assert (
        one(overlay, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == one(overlay, "Deployment")["metadata"]["name"]
    )
    publisher = kserve()["Pod"]["metadata"]["labels"]
    assert publisher != labels  # it is no server


# One source for a fact.


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_is_one_of_the_servers(overlay):
    assert set(settings_of(overlay)) <= set(vars(Settings()))
    env = (
        kserve()["ServingRuntime"]["spec"]["containers"][0]["env"]
        + kserve()["InferenceService"]["spec"]["predictor"]["model"]["env"]
    )
    ours = [v["name"].removeprefix("RESTORMER_").lower() for v in env if v["name"].startswith("RESTORMER_")]
    assert set(ours) <= set(vars(Settings()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_and_users_are_those_of_compose(overlay):
    service = COMPOSE["services"]["triton" if overlay == "gpu" else "triton-cpu"]
    assert {c["image"] for c in pod(overlay)["initContainers"] + pod(overlay)["containers"]} == {service["image"]}
    user = f"{pod(overlay)['securityContext']['runAsUser']}:{pod(overlay)['securityContext']['runAsGroup']}"
    assert user == service["user"]
    assert kserve()["Pod"]["spec"]["containers"][0]["image"] == COMPOSE["services"]["triton-cpu"]["image"]
    assert kserve()["ServingRuntime"]["spec"]["containers"][0]["image"] == COMPOSE["services"]["triton"]["image"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_paths_and_ports_are_those_of_the_image(overlay):
    dockerfile = (ROOT / f"docker/{'triton' if overlay == 'gpu' else 'triton-cpu'}.Dockerfile").read_text()
    mounts = {m["name"]: m for m in triton(overlay)["volumeMounts"]}
    assert f"RESTORMER_REPOSITORY={mounts['models']['mountPath']} " in dockerfile
    assert mounts["models"]["readOnly"] is True
    assert f"RESTORMER_STATE={mounts['state']['mountPath']} " in dockerfile
    assert pod(overlay)["initContainers"][0]["volumeMounts"] == triton(overlay)["volumeMounts"]
    ports = {p["name"]: p["containerPort"] for p in triton(overlay)["ports"]}
    assert ports == {"grpc": Settings().grpc_port, "metrics": Settings().metrics_port}
    assert one(overlay, "Service")["spec"]["clusterIP"] == "None"
    assert one(overlay, "Service")["spec"]["ports"][0]["port"] == Settings().grpc_port
    for probe in ("startupProbe", "livenessProbe"):
        command = triton(overlay)[probe]["exec"]["command"]
        assert f"{command[:3]}".replace("'", '"')[:-1] in dockerfile  # the image's own entry point
        assert command[3:] == ["health"]


def mebibytes(text):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|g)", text).groups()
    return int(number) * (1 if unit == "Mi" else 1024)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_is_what_the_preflight_computes(overlay, monkeypatch):
    """As much as every process with the largest photograph at a time would take; and the same as compose has."""
    cores = int(triton(overlay)["resources"]["limits"]["cpu"])
    monkeypatch.setattr(assemble.host, "cores", lambda: cores)
    settings = Settings(repository=ROOT / "model_repository", hardware="gpu" if overlay == "gpu" else "cpu")
    need, worst = shared_memory_need(settings)
    volumes = {v["name"]: v for v in pod(overlay)["volumes"]}
    size = mebibytes(volumes["shm"]["emptyDir"]["sizeLimit"])
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert need <= worst <= size << 20
    assert size == mebibytes(re.search(r":-(\w+)", COMPOSE["x-server"]["shm_size"])[1])
    in_memory = sum(mebibytes(v["emptyDir"]["sizeLimit"]) for v in volumes.values() if "emptyDir" in v)
    assert in_memory < mebibytes(triton(overlay)["resources"]["limits"]["memory"]) * 0.75


def test_a_gpus_cores_keep_up_with_it():
    cores = int(triton("gpu")["resources"]["limits"]["cpu"])
    processes = sum(assemble.share_cores(cores, on_gpu=True).values())
    assert processes * 1000 / sum(assemble.WORK_MS.values()) >= GPU_RATE
    assert triton("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert settings_of("gpu")["hardware"] == "auto"
    assert settings_of("cpu")["hardware"] == "cpu"


def test_the_rules_are_those_of_compose():
    made = rules.prometheus_rule(rules.SOURCE.read_text(encoding="utf-8"))
    assert rules.TARGET.read_text(encoding="utf-8") == made, "python deploy/kubernetes/rules.py"
    groups = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text(encoding="utf-8"))["groups"]
    for overlay in OVERLAYS:
        assert one(overlay, "PrometheusRule")["spec"]["groups"] == groups
        # The rules ask for the job `triton`.
        label = one(overlay, "PodMonitor")["spec"]["jobLabel"]
        assert one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"][label] == "triton"


# Times.


@pytest.mark.parametrize(
    "container", [triton("cpu"), triton("gpu"), kserve()["ServingRuntime"]["spec"]["containers"][0]]
)
def test_probes_fit_the_check_they_call(container):
    start, ready, live = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert start["exec"] == live["exec"]
    assert ready["grpc"]["port"] == Settings().grpc_port
    for probe in (start, live):
        # The check tries for so long, and then stops the server.
        assert probe["timeoutSeconds"] > SECONDS + STOP_AT_MOST + STOP_SECONDS
    # The check ends a server that has not been healthy after its start; before that the kubelet has patience.
    assert start["failureThreshold"] * start["periodSeconds"] > START_SECONDS
    # The check stops the server by itself. It fails without that where the metrics do not tell if it is only busy, so
    # once is not enough for the kubelet, who is for a server that does not stop; and then it does not sleep first.
    assert live["failureThreshold"] == 2
    for probe in (start, live):
        assert probe["terminationGracePeriodSeconds"] < container["lifecycle"]["preStop"]["sleep"]["seconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_server_leaves_before_it_stops(overlay):
    """gRPC spreads the age by a tenth and pauses 30 s between two questions; the name is kept for 5 s (CoreDNS)."""
    settings = settings_of(overlay)
    sleep = triton(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep >= int(settings["grpc_connection_age"]) * 1.1 + 30 + 5
    assert pod(overlay)["terminationGracePeriodSeconds"] > sleep + int(settings["exit_timeout"]) + STOP_SECONDS
    runtime = kserve()["ServingRuntime"]["spec"]["containers"][0]
    assert runtime["lifecycle"] == triton(overlay)["lifecycle"]
    assert {"name": "RESTORMER_GRPC_CONNECTION_AGE", "value": settings["grpc_connection_age"]} in runtime["env"]
    predictor = kserve()["InferenceService"]["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] == pod(overlay)["terminationGracePeriodSeconds"]


def test_what_is_rehearsed_is_what_is_deployed():
    """`make test-rolling` takes its seconds from the base."""
    assert rolling.as_deployed() == {
        "preStop": triton("cpu")["lifecycle"]["preStop"]["sleep"]["seconds"],
        "connection age": int(settings_of("cpu")["grpc_connection_age"]),
        "exit timeout": int(settings_of("cpu")["exit_timeout"]),
    }


# Replacing.


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_another_engine_is_another_configmap_and_so_a_rollout(overlay):
    data = one(overlay, "ConfigMap")["data"]
    assert one(overlay, "ConfigMap")["metadata"]["name"] == f"restormer-{checksum(data)}"
    assert checksum({**data, "RESTORMER_VERSIONS": "2"}) != checksum(data)
    for container in pod(overlay)["initContainers"] + pod(overlay)["containers"]:
        assert container["envFrom"] == [{"configMapRef": {"name": one(overlay, "ConfigMap")["metadata"]["name"]}}]
    assert pod(overlay)["initContainers"][0]["args"] == ["preflight"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_number_of_servers_is_the_autoscalers(overlay):
    assert "replicas" not in one(overlay, "Deployment")["spec"]
    scaled = one(overlay, "ScaledObject")["spec"]
    assert 2 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    strategy = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert sorted(strategy.values()) == [0, 1]
    assert one(overlay, "PodDisruptionBudget")["spec"]["maxUnavailable"] < scaled["minReplicaCount"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_was_tuned_is_one_file_and_one_line_more(overlay, tmp_path):
    before = one(overlay, "ConfigMap")
    (after,) = (d for d in rendered(tuned(overlay, tmp_path)) if d["kind"] == "ConfigMap")
    assert after["data"] == before["data"] | dict(line.split("=") for line in CHOICE.variables())
    assert after["metadata"]["name"] != before["metadata"]["name"]  # and so a rollout


def test_tls_is_one_line_more(tmp_path):
    documents = {d["kind"]: d for d in rendered(with_tls("cpu", tmp_path))}
    container = documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert "grpc" not in container["readinessProbe"]  # which speaks no TLS
    mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "secrets")
    data = documents["ConfigMap"]["data"]
    assert Path(data["RESTORMER_TLS_CERT"]).parent == Path(data["RESTORMER_TLS_KEY"]).parent == Path(mount)
    # A key that every user may read is refused by the preflight; the group may.
    (secret,) = (v["secret"] for v in documents["Deployment"]["spec"]["template"]["spec"]["volumes"] if "secret" in v)
    assert secret["defaultMode"] & 0o007 == 0
    for document in documents.values():
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


# KServe.


def test_kserves_runtime_is_a_pod_as_ours():
    """Its fields are those of KServe 0.21's Python models (V1alpha1ServingRuntimeSpec), its container is a pod's."""
    runtime, service = kserve()["ServingRuntime"], kserve()["InferenceService"]
    spec = runtime["spec"]
    assert set(spec) == {"supportedModelFormats", "protocolVersions", "containers", "volumes", "tolerations"}
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    as_pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [container], "volumes": spec["volumes"], "tolerations": spec["tolerations"]},
    }  # fmt: skip
    kubernetes_validate.validate(as_pod, VERSIONS[-1], strict=True)
    for name in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "resources", "securityContext"):
        assert container[name] == triton("gpu")[name], name
    ours = {v["name"]: v for v in pod("gpu")["volumes"]}
    assert spec["volumes"] == [ours[v["name"]] for v in spec["volumes"]]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] == {k: spec["supportedModelFormats"][0][k] for k in ("name", "version")}
    assert model["protocolVersion"] in spec["protocolVersions"]
    claim = one("gpu", "PersistentVolumeClaim")["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/"
    pods = {k: v for k, v in service["spec"]["predictor"].items() if k not in ("model", "minReplicas")}
    kubernetes_validate.validate({**as_pod, "spec": {**as_pod["spec"], **pods}}, VERSIONS[-1], strict=True)
    assert pods["securityContext"] == {
        k: v for k, v in pod("gpu")["securityContext"].items() if k != "fsGroupChangePolicy"
    }
