"""Stand in for the programs of the GPU checklist: check what a command asks for, and run none of it.

``python checklist_stubs.py NAME ARGUMENTS...`` exits with 0 if the program would accept the arguments: make expands its
recipes, Python modules parse their flags, and docker and kubectl are asked only for what this repository has.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import yaml
from restormer_client import cli

ROOT = Path(__file__).parents[2]


def run_make(words):
    """Expand the recipes; every setting must occur in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    unknown = [word for word in words if "=" in word and f"$({word.partition('=')[0]})" not in makefile]
    if unknown:
        raise SystemExit(f"make: no such setting: {unknown}")
    subprocess.run(["/usr/bin/make", "--dry-run", *words], stdout=subprocess.DEVNULL, check=True)


def run_python(words):
    """Parse the flags of a module or file, or compile the code after -c."""
    option, *rest = words
    if option == "-c":
        compile(rest[0], option, "exec")
        return
    argparse.ArgumentParser.parse_args = parse_only
    sys.path.insert(0, str(ROOT))
    if option == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(option, run_name="__main__")
    raise SystemExit(f"python {words}: parsed no flags")


def run_client(words):
    """Parse the flags of the client's command."""
    argparse.ArgumentParser.parse_args = parse_only
    cli.main(words)


def parse_only(parser, args=None, namespace=None):
    """Stand in for ``ArgumentParser.parse_args``: exit with 0 if it would accept the arguments."""
    _, unknown = parser.parse_known_args(args, namespace)
    if unknown:
        parser.error(f"unknown: {unknown}")
    raise SystemExit(0)


def run_docker(words):
    """Check the files, services and variables of a compose command, and the command in the container."""
    parser = argparse.ArgumentParser()
    parser.add_argument("compose", choices=["compose"])
    parser.add_argument("--profile", choices=["watch"])
    parser.add_argument("verb", choices=["build", "run", "exec", "up", "down", "top"])
    parser.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    files = os.environ.get("COMPOSE_FILE", "docker/compose.yaml").split(":")
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    settings = [name for name in os.environ if name.startswith("RESTORMER_") or name.endswith(("_GPU", "_GPUS"))]
    if unknown := [name for name in settings if not re.search(rf"- {name}\b|\$\{{{name}:", "".join(texts))]:
        raise SystemExit(f"docker compose passes no {unknown}")
    services = yaml.safe_load(texts[0])["services"]
    inside = argparse.ArgumentParser()
    for flag in ("-d", "-T", "--rm", "--wait"):
        inside.add_argument(flag, action="store_true")
    inside.add_argument("--entrypoint", action="append", default=[])
    found, rest = inside.parse_known_args(options.words)
    has_command = options.verb in ("run", "exec")
    if unknown := set(rest[:1] if has_command else rest) - set(services):
        raise SystemExit(f"docker compose has no service {unknown}")
    if has_command:
        run_inside(found.entrypoint + rest[1:], rest[0])


def run_inside(words, service):
    """Check a command of a container."""
    if words[:2] == ["sh", "-c"]:
        subprocess.run(["sh", "-n", "-c", words[2]], check=True)
    elif words[0] in ("make", "python"):
        PROGRAMS[words[0]](words[1:])
    else:  # the entrypoint of the server's image
        run_python(["-m", "server", *words] if service == "triton" else words)


def run_kubectl(words):
    """Check that manifests exist, and the shell's code after --."""
    for flag in ("-k", "-f"):
        if flag in words and not Path(words[words.index(flag) + 1]).exists():
            raise SystemExit(f"kubectl: no {words[words.index(flag) + 1]}")
    if "--" in words:
        run_inside(words[words.index("--") + 1 :], "")


PROGRAMS = {
    "make": run_make,
    "python": run_python,
    "python3": run_python,
    "restormer-client": run_client,
    "docker": run_docker,
    "kubectl": run_kubectl,
    # Programs that this project neither has nor configures: their arguments are only expanded by the shell.
    **dict.fromkeys(
        ("apt-get", "install", "ncu", "nsys", "nvidia-smi", "pip", "polygraphy", "ray", "tritonserver", "trtexec"),
        lambda words: None,
    ),
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2:])
