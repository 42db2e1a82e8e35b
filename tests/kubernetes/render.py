"""What `kubectl kustomize FOLDER` would print, as documents: by kubectl where it is, else by the renderer below.

The renderer is for tests on machines without kubectl, knows only what our files use, and refuses the rest; a test holds
the two together where kubectl is there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "components", "images", "configMapGenerator", "patches",
}  # fmt: skip
#: What tells the items of a list apart when patches are merged, by the list's name.
KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def rendered(folder: Path) -> list[Document]:
    """By kubectl where it is, else by `render`."""
    return by_kubectl(folder) if shutil.which("kubectl") else render(folder)


def by_kubectl(folder: Path) -> list[Document]:
    """The real one."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render(folder: Path) -> list[Document]:
    """The small one."""
    documents = _accumulated(folder.resolve(), [])
    renamed = {}
    for document in documents:
        if document["kind"] == "ConfigMap" and document.pop("generated", False):
            name = document["metadata"]["name"]
            renamed[name] = document["metadata"]["name"] = f"{name}-{checksum(document['data'])}"
    for container in _containers(documents):
        for source in container.get("envFrom", []):
            source["configMapRef"]["name"] = renamed[source["configMapRef"]["name"]]
    return documents


def checksum(data: dict[str, str]) -> str:
    """Kustomize's suffix of a generated ConfigMap: ten letters of a SHA-256, some replaced (the name is left empty)."""
    text = json.dumps({"data": data, "kind": "ConfigMap", "name": ""}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10].translate(str.maketrans("013ae", "ghkmt"))


def _accumulated(folder: Path, documents: list[Document]) -> list[Document]:
    """The documents so far, and what the folder's kustomization does to them."""
    own = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(own) <= KNOWN, f"{folder}: the small renderer does not know {set(own) - KNOWN}"
    for name in own.get("resources", []):
        path = folder / name
        documents += _accumulated(path, []) if path.is_dir() else _loaded(path)
    for name in own.get("components", []):
        documents = _accumulated(folder / name, documents)
    for generator in own.get("configMapGenerator", []):
        _generate(generator, folder, documents)
    for patch in own.get("patches", []):
        _patch(patch, folder, documents)
    for document in documents:
        if "namespace" in own and document["kind"] != "Namespace":
            document["metadata"]["namespace"] = own["namespace"]
    for image in own.get("images", []):
        for container in _containers(documents):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return documents


def _loaded(path: Path) -> list[Document]:
    """A file's documents. Through JSON, so that what an alias repeats is a copy of its own."""
    documents: list[Document] = json.loads(json.dumps(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))))
    return documents


def _containers(documents: list[Document]) -> Iterator[Document]:
    for document in documents:
        if document["kind"] == "Deployment":
            spec = document["spec"]["template"]["spec"]
            yield from spec.get("initContainers", []) + spec["containers"]


def _generate(generator: Document, folder: Path, documents: list[Document]) -> None:
    read = [line for name in generator.get("envs", []) for line in (folder / name).read_text("utf-8").splitlines()]
    settings = [*generator["literals"], *(line for line in read if line and not line.startswith("#"))]
    data = dict(setting.split("=", 1) for setting in settings)
    if generator.get("behavior") == "merge":
        (there,) = _targets({"kind": "ConfigMap", "name": generator["name"]}, documents)
        there["data"] = {**there["data"], **data}
    else:
        head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}}
        documents.append({**head, "data": data, "generated": True})


def _patch(patch: Document, folder: Path, documents: list[Document]) -> None:
    if "path" in patch:
        (changes,) = _loaded(folder / patch["path"])
        target = {"kind": changes["kind"], "name": changes["metadata"]["name"]}
        (document,) = _targets(target, documents)
        _merge(document, changes, "")
    else:
        (document,) = _targets(patch["target"], documents)
        for operation in yaml.safe_load(patch["patch"]):
            _operate(document, **operation)


def _targets(target: Document, documents: list[Document]) -> list[Document]:
    return [d for d in documents if d["kind"] == target["kind"] and d["metadata"]["name"] == target["name"]]


def _operate(document: Document, *, op: str, path: str, value: Any = None) -> None:
    """RFC 6902's remove and replace."""
    *way, last = [int(part) if part.isdecimal() else part.replace("~1", "/") for part in path.split("/")[1:]]
    place: Any = document
    for part in way:
        place = place[part]
    place[last]  # both want something there
    if op == "remove":
        del place[last]
    else:
        assert op == "replace", f"the small renderer does not know {op}"
        place[last] = copy.deepcopy(value)


def _merge(there: Document, changes: Document, name: str) -> None:
    """Kubernetes' strategic merge of objects, and of lists whose items have a key."""
    for key, value in changes.items():
        old = there.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value, key)
        elif isinstance(value, list) and isinstance(old, list) and key in KEYS:
            for item in value:
                same = [each for each in old if each[KEYS[key]] == item[KEYS[key]]]
                _merge(same[0], item, key) if same else old.insert(0, copy.deepcopy(item))
        else:
            there[key] = copy.deepcopy(value)
