"""The modules of export/ import each other in one direction."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import ROOT

#: Modules that import nothing of the pipeline; every module may import them.
FOUNDATION = {f"export.{name}" for name in ("errors", "files", "metrics", "names", "precision", "progress")}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in (ROOT / "export").rglob("*.py")}


def imported_modules(path):
    """Yield the modules of export/ that a file imports, also in functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "export":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


GRAPH = {name: set(imported_modules(path)) for name, path in MODULES.items()}


def test_no_module_imports_itself_through_others():
    assert "export.precision" in GRAPH["export.build"]
    assert "export.factory" in GRAPH["export.build"]  # imported in a function
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(("package", "allowed"), [("package", ("package", "network")), ("network", ("network",))])
def test_packages_and_networks_are_below_the_pipeline(package, allowed):
    below = (*FOUNDATION, *(f"export.{name}." for name in allowed))
    modules = [name for name in GRAPH if name.startswith(f"export.{package}.")]
    assert modules
    assert [(name, other) for name in modules for other in GRAPH[name] if not other.startswith(below)] == []


def test_targets_do_not_import_each_other_or_what_calls_them():
    """Except the base classes, so that a new target is a new file."""
    targets = {name for name in GRAPH if name.startswith("export.targets.")}
    bases = {"export.targets.base", "export.targets.nvidia"}
    callers = {"export.build", "export.factory", "export.engines", "export.__main__", "export.targets"}
    assert [(name, other) for name in targets for other in GRAPH[name] & (targets - bases | callers)] == []
