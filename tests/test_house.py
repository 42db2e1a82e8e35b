"""Imports between folders, the README, the Makefile and the links of the docs."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings
from tests.acceptance import load

ROOT = Path(__file__).parents[1]
ROOMS = {
    "adapters",
    "bulk",
    "export",
    "hosts",
    "imaging",
    "server",
    "restormer_client",
    "demo",
    "benchmarks",
    "operations",
    "traffic",
    "tests",
}
#: The folders of this project, and some libraries, that a folder may not import.
FORBIDDEN = {
    # tritonclient is allowed: the ladder's last stage uses a real Triton.
    "export": {"adapters", "server", "restormer_client", "demo", "benchmarks", "operations", "traffic", "tests"},
    "imaging": (ROOMS - {"imaging"}) | {"torch", "onnx", "openvino", "tritonclient", "triton_python_backend_utils"},
    "adapters": (ROOMS - {"adapters", "imaging"})
    | {"torch", "openvino", "tritonclient", "triton_python_backend_utils"},
    "hosts": ROOMS - {"hosts"},
    "server": (ROOMS - {"hosts", "server"}) | {"torch", "numpy"},
    "client": (ROOMS - {"restormer_client"}) | {"torch"},
    "model_repository": (ROOMS - {"adapters", "imaging"}) | {"torch", "tritonclient"},
    "demo": {"server", "benchmarks", "operations", "tests"},
    "traffic": {"demo", "benchmarks", "operations", "tests"},
    "operations": {"demo", "benchmarks", "tests"},
    "benchmarks": {"tests"},
    "bulk": (ROOMS - {"bulk", "restormer_client"}) | {"torch", "tritonclient"},
}
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_folders_import_only_what_they_may(room):
    files = [p for p in (ROOT / room).rglob("*.py") if not p.parts[-2].startswith(".")]
    assert files
    violations = [f"{p.relative_to(ROOT)}: {name}" for p in files for name in imported(p) if name in FORBIDDEN[room]]
    assert not violations


def test_the_server_imports_only_the_standard_library_and_tritons_schema():
    """And imports the schema only to read a config."""
    names = {name for path in (ROOT / "server").rglob("*.py") for name in imported(path)}
    assert names - set(sys.stdlib_module_names) == {"hosts", "server", "google", "tritonclient"}
    loaded = "import sys, server.__main__; sys.exit(bool({'google.protobuf', 'tritonclient'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0


def make_targets():
    return set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))


def test_help_lists_every_target_and_setting():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z0-9-]+)", listed, re.MULTILINE)) == make_targets()
    defaults = re.findall(r"^([A-Z_]+) +\??=", MAKEFILE.partition("SERVER_FLAGS")[0], re.MULTILINE)
    optional = re.findall(r"\$\(if \$\(([A-Z_]+)\),", MAKEFILE)
    assert [name for name in {*defaults, *optional} if f" {name}=" not in listed] == []
    emptied = re.search(r"^\$\(foreach name,\\\n(.*?),", MAKEFILE, re.MULTILINE | re.DOTALL)[1].split()
    assert {*optional} - {*defaults} <= {*emptied}, "an inherited variable would count"


def test_every_target_has_a_comment():
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[1].replace("\\", "").split()
    assert set(phony) - {"check-python"} == make_targets()


def shell_commands():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("make ")})


@pytest.mark.parametrize("command", shell_commands())
def test_every_make_command_of_the_readme_exists(command):
    """Expanded by make without running them; tests/client runs the client's commands."""
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_file_tree_of_the_readme_is_complete():
    tree = re.search(r"## Layout\n+```text\n(.*?)```", README, re.DOTALL)[1]
    named = {name.rstrip("/") for line in tree.splitlines() for name in re.split(" {2,}", line)[0].split(", ")}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert named == top - {".gitignore", ".dockerignore"}


def markdown():
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in tracked.splitlines()]


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(page):
    """Return the anchors that GitHub makes from the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", markdown(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_has_a_target(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_links_every_page_of_the_docs():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {link.partition("#")[0] for link in links(ROOT / "README.md")}


def test_the_load_was_measured_with_the_config_that_is_served():
    recorded = json.loads((ROOT / "benchmarks/results/load.json").read_text(encoding="utf-8"))
    served = load.hash_configs(ROOT / "model_repository")
    assert recorded["config_sha256"] == served, "make test-load RECORD=benchmarks/results/load.json"


def test_every_setting_of_the_server_is_on_the_production_page():
    page = (ROOT / "docs/production.md").read_text(encoding="utf-8")
    assert not [name for name in Settings.__dataclass_fields__ if f"`--{name.replace('_', '-')}`" not in page]


def test_ci_calls_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "make test" in shell_commands()
