"""``python -m export engine`` and ``python -m export inspect``: see ``make help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.build import Request, build
from export.errors import ExportError


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Model package -> engine in the repository.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    engine = verbs.add_parser("engine", help="build, check and publish an engine")
    engine.add_argument("--precision", default="fp32", help="fp32 or bf16")
    engine.add_argument("--target", default="auto", help="cpu or auto")
    engine.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    engine.add_argument("--version", type=int, default=1, help="version folder to publish as")
    engine.add_argument("--photographs", type=Path, default=Path("demo/photos"), help="folder to measure fidelity on")
    inspect = verbs.add_parser("inspect", help="print what is in a model package")
    for verb in (engine, inspect):
        verb.add_argument("--package", type=Path, required=True, help="folder of the model package")
    options = vars(parser.parse_args(arguments))
    try:
        if options.pop("verb") == "engine":
            build(Request(**options))
        else:
            _inspect(**options)
    except (ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was published", file=sys.stderr)
        return 130
    return 0


def _inspect(package: Path) -> None:
    from export.package import package_from_folder  # PyTorch: only where it is needed
    from export.report import report

    print(report(package_from_folder(package)))


if __name__ == "__main__":
    sys.exit(main())
