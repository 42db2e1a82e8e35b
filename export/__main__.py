"""``python -m export VERB``: see ``make help``, ``--help``, and ``--help`` of each verb."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from export.build import build
from export.engines import engines_table, rollback
from export.errors import ExportError
from export.precision import PRECISIONS
from export.progress import say
from export.request import AUTO, CALIBRATORS, COMPATIBILITY, TILING, Options, Request, require_repository
from export.targets import TARGETS
from export.termination import exit_on_sigterm
from imaging.options import NATIVE, SMALL

DEFAULT = Request(package=Path())  # its defaults are those of the flags


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _Parser(prog="python -m export", description="Model package -> engine in the repository.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    engine = verbs.add_parser("engine", help="build, check and publish an engine")
    _engine_flags(engine)
    engines = verbs.add_parser("engines", help="list what is published")
    rollback = verbs.add_parser("rollback", help="remove a published version")
    rollback.add_argument("--version", type=_positive, required=True, help="version folder to remove")
    for verb in (engine, engines, rollback):
        verb.add_argument("--repository", type=_path, default=DEFAULT.repository, help="Triton model repository")
        verb.add_argument("--engines", type=_path, default=DEFAULT.engines, help="engines that Triton does not serve")
    inspect = verbs.add_parser("inspect", help="print what is in a model package")
    enhance = verbs.add_parser("enhance", help="enhance photographs with PyTorch, without a server")
    _enhance_flags(enhance)
    evaluate = verbs.add_parser("evaluate", help="measure a package and its published versions on pairs")
    _evaluate_flags(evaluate)
    for verb in (engine, inspect, evaluate):
        verb.add_argument("--package", type=_path, required=True, help="folder of the model package")
    options = vars(parser.parse_args(arguments))
    try:
        if "repository" in options:
            require_repository(options["repository"])
        with exit_on_sigterm():
            return min(_VERBS[options.pop("verb")](options) or 0, 1)
    except (ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as error:
        print("interrupted: nothing was published", file=sys.stderr)
        return error.code if isinstance(error, SystemExit) else 130  # type: ignore[return-value]


def _engine_flags(engine: argparse.ArgumentParser) -> None:
    engine.set_defaults(**{**vars(DEFAULT), **vars(DEFAULT.options)})
    engine.add_argument("--precision", help=", ".join((*PRECISIONS, AUTO)))
    engine.add_argument("--target", help=", ".join((AUTO, *TARGETS)))
    engine.add_argument("--version", type=_positive, help="version folder to publish as")
    engine.add_argument("--photos", type=_path, help="folder to measure fidelity on")
    engine.add_argument("--truth", type=_path, dest="ground_truth", help="their ground truth, under the same names")
    engine.add_argument("--pairs", type=_path, help="JSON lines of input and target, instead of both folders")
    engine.add_argument("--data", type=_path, help="folder the paths of --pairs are relative to")
    engine.add_argument("--calibration", type=_path, help="folder for ranges and scales")
    engine.add_argument("--calibrator", help=", ".join(CALIBRATORS))
    engine.add_argument("--plan", type=_path, help="INT8 plan to use instead of measuring one")
    engine.add_argument("--gate", type=float, help="minimum PSNR in dB instead of the precision's own; recorded")
    engine.add_argument(
        "--side-override",
        type=int,
        metavar="512",
        help="build for 512x512 although the network was trained at another size",
    )
    engine.add_argument("--server-python", type=_path, help="interpreter of the server, for the last stage")
    engine.add_argument("--max-batch", type=_positive, help="largest batch of the profile")
    engine.add_argument("--opt-batch", type=_positive, help="batch that the plan is fastest at (default: --max-batch)")
    engine.add_argument("--optimization-level", type=int, choices=range(6))
    engine.add_argument("--timing-iterations", type=_positive)
    engine.add_argument("--tiling", choices=TILING)
    engine.add_argument("--aux-streams", type=int, help="maximum; 0: none (default: TensorRT chooses)")
    engine.add_argument("--compatibility", choices=tuple(COMPATIBILITY))
    engine.add_argument("--workspace-mb", type=int, help="0: no limit")
    engine.add_argument(
        "--compute-capabilities", type=lambda text: tuple(text.split()), help='for rtx, for example "8.6 8.9 12.0"'
    )
    engine.add_argument(
        "--onnxruntime-tensorrt", action="store_true",
        help="for tensorrt: measure the graph in ONNX Runtime's TensorRT too, which builds it a second time",
    )  # fmt: skip


def _enhance_flags(enhance: argparse.ArgumentParser) -> None:
    model = enhance.add_mutually_exclusive_group(required=True)
    model.add_argument("--package", type=_path, help="folder of the model package")
    model.add_argument("--checkpoint", type=_path, help="checkpoint file alone, without the JSON files of a package")
    enhance.add_argument("--input", type=_path, help="photograph to read")
    enhance.add_argument("--output", type=_path, help="file to write; its extension selects the format")
    enhance.add_argument("--input_dir", type=_path, help="folder of photographs to read")
    enhance.add_argument("--output_dir", type=_path, help="folder to write into")
    enhance.add_argument(
        "--suffix", default="", help="added to the stem of every name in --output_dir, for example _hdr"
    )
    enhance.add_argument(
        "--size", choices=(NATIVE, SMALL), default=NATIVE,
        help="512: the network's own result in the photograph's aspect ratio, the longer side at 512 pixels, "
        "not stretched to 512x512 (default: native, the photograph's own size)",
    )  # fmt: skip
    enhance.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
    enhance.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    enhance.add_argument("--compile", action="store_true", dest="compiled", help="slower start, then faster")


def _evaluate_flags(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--pairs", type=_path, required=True, help="JSON lines of input and target")
    evaluate.add_argument("--data", type=_path, help="folder their paths are relative to (default: the file's own)")
    evaluate.add_argument("--versions", type=_versions, default=(), help="published versions, as 1,2 (default: all)")
    evaluate.add_argument("--repository", type=_path, default=DEFAULT.repository, help="Triton model repository")
    evaluate.add_argument("--server-python", type=_path, help="interpreter of the server, to start a Triton")
    evaluate.add_argument("--url", default="", help="a running Triton that serves the versions, instead of a new one")
    evaluate.add_argument("--output", type=_path, default=Path("out/evaluate"), help="folder of the results")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, like every other error."""
        self.exit(2, f"error: {message}\n")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return int(text)


def _versions(text: str) -> tuple[int, ...]:
    return tuple(_positive(part.strip()) for part in text.split(","))


def _engine(options: dict[str, Any]) -> None:
    options["options"] = Options(**{field.name: options.pop(field.name) for field in fields(Options)})
    build(Request(**options))


def _inspect(options: dict[str, Any]) -> None:
    from export.inspection import describe_package
    from export.package.model_package import package_from_folder  # PyTorch: only where it is needed

    print(describe_package(package_from_folder(options["package"])))


def _enhance(options: dict[str, Any]) -> int:
    from export import enhance
    from export.package.model_package import package_from_checkpoint, package_from_folder

    one, folder = (options["input"], options["output"]), (options["input_dir"], options["output_dir"])
    if all(one) == all(folder) or any(one) == any(folder):
        raise ExportError("give --input and --output, or --input_dir and --output_dir")
    if all(one) and options["suffix"]:
        raise ExportError("--suffix goes with --input_dir and --output_dir; --output is the whole name")
    if all(one) and one[0].is_dir():
        raise ExportError(f"--input {one[0]} is a folder: use --input_dir and --output_dir")
    pairs = [one] if all(one) else enhance.pairs_from_folders(*folder, options["suffix"])
    enhance.require_no_overwriting(pairs)
    for _, target in pairs:
        enhance.format_from_name(target)  # before the network is loaded
    checkpoint = options["checkpoint"]
    package = package_from_checkpoint(checkpoint) if checkpoint else package_from_folder(options["package"])
    for remark in package.remarks:
        say(f"remark: {remark}")
    settings = {name: options[name] for name in ("precision", "device", "compiled")}
    return enhance.enhance_files(pairs, enhance.runner_from_package(package, **settings), size=options["size"])


def _evaluate(options: dict[str, Any]) -> None:
    from export import evaluate

    summary = evaluate.evaluate(evaluate.EvaluationRequest(**options))
    print(evaluate.format_table(summary))
    print(json.dumps(summary))


_VERBS: dict[str, Callable[[dict[str, Any]], int | None]] = {
    "engine": _engine,
    "engines": lambda options: print(engines_table(**options)),
    "rollback": lambda options: rollback(**options),
    "inspect": _inspect,
    "enhance": _enhance,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    sys.exit(main())
