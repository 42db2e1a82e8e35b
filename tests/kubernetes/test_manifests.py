"""Check the manifests of deploy/kubernetes against Kubernetes' schemas and against the server's settings."""

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
from tests.kubernetes.render import FOLDER, OVERLAYS, documents, one, render

COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
#: Supported Kubernetes releases at the time of writing, oldest to newest; preStop's `sleep` needs 1.30.
VERSIONS = ("1.30", "1.34", "1.37")
#: Custom resources, with the schemas that the operators' projects publish.
CUSTOM = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}
_spec = importlib.util.spec_from_file_location("rules", FOLDER / "rules.py")
rules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rules)


def pod(overlay):
    return one(overlay, "Deployment")["spec"]["template"]["spec"]


def triton(overlay):
    (container,) = pod(overlay)["containers"]
    return container


def read_settings(overlay):
    return {name.removeprefix("RESTORMER_").lower(): value for name, value in one(overlay, "ConfigMap")["data"].items()}


def kserve():
    """Return the documents that are applied without rendering, by kind."""
    files = [FOLDER / "publisher.yaml", *sorted((FOLDER / "kserve").glob("*.yaml"))]
    return {d["kind"]: d for path in files for d in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


def uncomment_line(overlay, folder, line):
    """Copy an overlay and uncomment a line."""
    copy = shutil.copytree(FOLDER, folder / "kubernetes") / "overlays" / overlay
    text = (copy / "kustomization.yaml").read_text()
    assert text.count(f"# {line}") == 1
    (copy / "kustomization.yaml").write_text(text.replace(f"# {line}", line))
    return copy


def enable_tls(overlay, folder):
    return uncomment_line(overlay, folder, "- ../../components/tls")


CHOICE = tune.Choice(1, 2, 3, 2, 4, 500)


def add_tuned_settings(overlay, folder):
    """Copy an overlay and add the settings written by `make tune`."""
    copy = uncomment_line(overlay, folder, "envs: [tuned.env]")
    tune.write_settings(copy / "tuned.env", CHOICE, ["make tune SLO_P99_MS=4000", "a machine"])
    return copy


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid_against_kubernetes_schemas(overlay, version):
    seen = set()
    for document in [*documents(overlay), *(d for d in kserve().values() if d["kind"] == "Pod")]:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)
            seen.add(document["kind"])
    assert seen == {
        "Namespace", "ConfigMap", "Service", "PersistentVolumeClaim", "Deployment", "PodDisruptionBudget",
        "NetworkPolicy", "Pod",
    }  # fmt: skip


def test_the_schemas_reject_unknown_fields():
    wrong = {**one("cpu", "Service"), "spec": {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("kind", CUSTOM)
def test_custom_resources_are_valid_against_their_schemas(kind):
    """The models drop unknown fields, so a valid document passes through them unchanged."""
    for overlay in OVERLAYS:
        document = one(overlay, kind)
        assert parse_custom(document) == document
        document = {**document, "spec": {**document["spec"], "bogus": 1}}
        assert parse_custom(document) != document


def parse_custom(document):
    return CUSTOM[document["kind"]].model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")


def pod_spec(name):
    """Return the spec of a pod; KServe's is assembled from two documents."""
    if name in OVERLAYS:
        return pod(name)
    if name == "publisher":
        return kserve()["Pod"]["spec"]
    runtime, service = kserve()["ServingRuntime"]["spec"], kserve()["InferenceService"]["spec"]["predictor"]
    return {**service, "containers": runtime["containers"], "volumes": runtime["volumes"]}


@pytest.mark.parametrize("name", [*OVERLAYS, "publisher", "kserve"])
def test_pods_are_restricted(name):
    """The Pod Security standard `restricted`, which the namespace enforces, and a read-only root and limits."""
    spec = pod_spec(name)
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


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_enforces_the_restricted_standard(overlay):
    labels = one(overlay, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_clients_and_prometheus_reach_the_servers_and_the_servers_reach_nothing(overlay):
    spec = one(overlay, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == []
    assert {rule["ports"][0]["port"]: rule["from"][0] for rule in spec["ingress"]} == {
        "grpc": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"restormer-client": "true"}}},
        "metrics": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_selectors_select_the_servers(overlay):
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
    assert publisher != labels  # it is not a server


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_settings_exist_in_the_server(overlay):
    assert set(read_settings(overlay)) <= set(vars(Settings()))
    env = (
        kserve()["ServingRuntime"]["spec"]["containers"][0]["env"]
        + kserve()["InferenceService"]["spec"]["predictor"]["model"]["env"]
    )
    names = [v["name"].removeprefix("RESTORMER_").lower() for v in env if v["name"].startswith("RESTORMER_")]
    assert set(names) <= set(vars(Settings()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_and_users_equal_those_of_compose(overlay):
    service = COMPOSE["services"]["triton" if overlay == "gpu" else "triton-cpu"]
    assert {c["image"] for c in pod(overlay)["initContainers"] + pod(overlay)["containers"]} == {service["image"]}
    user = f"{pod(overlay)['securityContext']['runAsUser']}:{pod(overlay)['securityContext']['runAsGroup']}"
    assert user == service["user"]
    assert re.fullmatch(r"busybox:[\d.]+", kserve()["Pod"]["spec"]["containers"][0]["image"])
    assert kserve()["ServingRuntime"]["spec"]["containers"][0]["image"] == COMPOSE["services"]["triton"]["image"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_paths_and_ports_equal_those_of_the_image(overlay):
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
        assert f"{command[:3]}".replace("'", '"')[:-1] in dockerfile  # the entry point of the image
        assert command[3:] == ["health"]


def parse_mebibytes(text):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|g)", text).groups()
    return int(number) * (1 if unit == "Mi" else 1024)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_covers_the_need_computed_by_the_preflight(overlay, monkeypatch):
    """Enough for the largest photograph in every process at once, and the same as in compose."""
    cores = int(triton(overlay)["resources"]["limits"]["cpu"])
    monkeypatch.setattr(assemble.host, "cores", lambda: cores)
    settings = Settings(repository=ROOT / "model_repository", hardware="gpu" if overlay == "gpu" else "cpu")
    need, worst = shared_memory_need(settings)
    volumes = {v["name"]: v for v in pod(overlay)["volumes"]}
    size = parse_mebibytes(volumes["shm"]["emptyDir"]["sizeLimit"])
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert need <= worst <= size << 20
    assert size == parse_mebibytes(re.search(r":-(\w+)", COMPOSE["x-server"]["shm_size"])[1])
    in_memory = sum(parse_mebibytes(v["emptyDir"]["sizeLimit"]) for v in volumes.values() if "emptyDir" in v)
    assert in_memory < parse_mebibytes(triton(overlay)["resources"]["limits"]["memory"]) * 0.75


def test_the_cores_keep_up_with_the_gpu():
    cores = int(triton("gpu")["resources"]["limits"]["cpu"])
    processes = sum(assemble.share_cores(cores, on_gpu=True).values())
    assert processes * 1000 / sum(assemble.WORK_MS.values()) >= GPU_RATE
    assert triton("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert read_settings("gpu")["hardware"] == "auto"
    assert read_settings("cpu")["hardware"] == "cpu"


def test_the_alert_rules_equal_those_of_compose():
    manifest = rules.manifest_from_rules(rules.SOURCE.read_text(encoding="utf-8"))
    assert rules.TARGET.read_text(encoding="utf-8") == manifest, "python deploy/kubernetes/rules.py"
    groups = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text(encoding="utf-8"))["groups"]
    for overlay in OVERLAYS:
        assert one(overlay, "PrometheusRule")["spec"]["groups"] == groups
        # The rules select the job `triton`.
        label = one(overlay, "PodMonitor")["spec"]["jobLabel"]
        assert one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"][label] == "triton"


@pytest.mark.parametrize("name", [*OVERLAYS, "kserve"])
def test_probes_leave_time_for_the_health_check(name):
    container = kserve()["ServingRuntime"]["spec"]["containers"][0] if name == "kserve" else triton(name)
    start, ready, live = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert start["exec"] == live["exec"]
    assert ready["grpc"]["port"] == Settings().grpc_port
    for probe in (start, live):
        # The check tries for SECONDS, then stops the server.
        assert probe["timeoutSeconds"] > SECONDS + STOP_AT_MOST + STOP_SECONDS
    # The check stops a server that is not healthy START_SECONDS after its start; until then the kubelet must wait.
    assert start["failureThreshold"] * start["periodSeconds"] > START_SECONDS
    # The check itself stops a broken server. It also fails if the metrics do not answer, so one failure must not make
    # the kubelet act; the kubelet is for servers that do not stop, and then skips the sleep.
    assert live["failureThreshold"] == 2
    for probe in (start, live):
        assert probe["terminationGracePeriodSeconds"] < container["lifecycle"]["preStop"]["sleep"]["seconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_servers_are_drained_before_they_stop(overlay):
    """gRPC varies the connection age by a tenth and waits 30 s between DNS queries; CoreDNS caches names for 5 s."""
    settings = read_settings(overlay)
    sleep = triton(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep >= int(settings["grpc_connection_age"]) * 1.1 + 30 + 5
    assert pod(overlay)["terminationGracePeriodSeconds"] > sleep + int(settings["exit_timeout"]) + STOP_SECONDS
    runtime = kserve()["ServingRuntime"]["spec"]["containers"][0]
    assert runtime["lifecycle"] == triton(overlay)["lifecycle"]
    assert {"name": "RESTORMER_GRPC_CONNECTION_AGE", "value": settings["grpc_connection_age"]} in runtime["env"]
    predictor = kserve()["InferenceService"]["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] == pod(overlay)["terminationGracePeriodSeconds"]


def test_the_rolling_test_uses_the_deployed_times():
    assert rolling.deployed_times() == {
        "preStop": triton("cpu")["lifecycle"]["preStop"]["sleep"]["seconds"],
        "connection age": int(read_settings("cpu")["grpc_connection_age"]),
        "exit timeout": int(read_settings("cpu")["exit_timeout"]),
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_use_the_configmap_whose_name_changes_with_the_engine(overlay):
    for container in pod(overlay)["initContainers"] + pod(overlay)["containers"]:
        assert container["envFrom"] == [{"configMapRef": {"name": one(overlay, "ConfigMap")["metadata"]["name"]}}]
    assert pod(overlay)["initContainers"][0]["args"] == ["preflight"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_sets_the_number_of_servers(overlay):
    assert "replicas" not in one(overlay, "Deployment")["spec"]
    scaled = one(overlay, "ScaledObject")["spec"]
    assert 2 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    strategy = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert sorted(strategy.values()) == [0, 1]
    assert one(overlay, "PodDisruptionBudget")["spec"]["maxUnavailable"] < scaled["minReplicaCount"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tuned_settings_take_one_file_and_one_line(overlay, tmp_path):
    before = one(overlay, "ConfigMap")
    (after,) = (d for d in render(add_tuned_settings(overlay, tmp_path)) if d["kind"] == "ConfigMap")
    assert after["data"] == before["data"] | dict(line.split("=") for line in CHOICE.variables())
    assert after["metadata"]["name"] != before["metadata"]["name"]  # so that a rollout starts


def test_tls_is_enabled_by_one_line(tmp_path):
    documents = {d["kind"]: d for d in render(enable_tls("cpu", tmp_path))}
    container = documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert "grpc" not in container["readinessProbe"]  # the gRPC probe does not support TLS
    mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "secrets")
    data = documents["ConfigMap"]["data"]
    assert Path(data["RESTORMER_TLS_CERT"]).parent == Path(data["RESTORMER_TLS_KEY"]).parent == Path(mount)
    # The preflight rejects keys that every user may read; the group may read them.
    (secret,) = (v["secret"] for v in documents["Deployment"]["spec"]["template"]["spec"]["volumes"] if "secret" in v)
    assert secret["defaultMode"] & 0o007 == 0
    for document in documents.values():
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_kserves_runtime_equals_the_gpu_deployment():
    """Its fields are those of KServe 0.21's Python models (V1alpha1ServingRuntimeSpec)."""
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
    volumes = {v["name"]: v for v in pod("gpu")["volumes"]}
    assert spec["volumes"] == [volumes[v["name"]] for v in spec["volumes"]]
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
