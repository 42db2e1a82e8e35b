"""Enhance photographs with PyTorch, without a server: the reference for what is served.

All steps but the network are ``imaging``'s, the code that the server runs.
"""

from pathlib import Path

from export.errors import ExportError
from export.fidelity import Runner, torch_runner
from export.files import write_bytes
from export.network.rewrites import HALVES, to_floating_type
from export.package.model_package import Package, network_from_package
from export.progress import say, step, track
from imaging import SUFFIXES, InvalidPhotograph, Options, core_from_file, file_from_core
from imaging.options import WRITTEN

DEFAULTS = Options()


def enhance(data: bytes, run: Runner, options: Options = DEFAULTS) -> bytes:
    """Enhance one encoded photograph. ``run`` maps core tensors ``[1, 3, 512, 512]``."""
    core = core_from_file(data)
    return file_from_core(data, core, run(core[None])[0], options)


def runner_from_package(
    package: Package, *, precision: str = "fp32", device: str = "cpu", compiled: bool = False
) -> Runner:
    """Return a function that runs the package's network in PyTorch."""
    if precision not in ("fp32", *HALVES):
        raise ExportError(f"--precision {precision} is unknown: choose one of {', '.join(('fp32', *HALVES))}")
    network = to_floating_type(network_from_package(package), precision)
    try:
        return torch_runner(network, device=device, compiled=compiled)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"--device {device} cannot be used ({reason}): choose cpu, or cuda with a GPU") from error


def enhance_files(pairs: list[tuple[Path, Path]], run: Runner, *, size: str) -> int:
    """Enhance each input into its output, whole or not at all; return how many failed, each reported in one line.

    The name of an output decides its format.
    """
    failed = 0
    with step(f"enhancing {len(pairs)} photographs"):
        for source, target in track(pairs):
            try:
                options = Options(format=format_from_name(target), size=size)
                write_bytes(target, enhance(source.read_bytes(), run, options))
            except (InvalidPhotograph, OSError) as error:
                failed += 1
                say(f"\nerror: {source}: {error}")
    return failed


def pairs_from_folders(source: Path, target: Path, suffix: str) -> list[tuple[Path, Path]]:
    """List the photographs of a folder, each with the file to write: ``<stem><suffix>`` and its extension.

    HEIC, which cannot be written, becomes JPEG.
    """
    files = sorted(path for path in source.glob("[!.]*") if not path.is_dir())
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if len(paths) < len(files):
        say(f"{len(files) - len(paths)} skipped: no photograph extension")
    if not paths:
        raise ExportError(f"no photographs in {source}: give a folder with {', '.join(SUFFIXES)}")
    if "/" in suffix:
        raise ExportError(f"--suffix {suffix} must be part of a file name, without /")
    endings = [path.suffix if path.suffix.lower() in WRITTEN else ".jpg" for path in paths]
    return [(path, target / f"{path.stem}{suffix}{ending}") for path, ending in zip(paths, endings, strict=True)]


def require_no_overwriting(pairs: list[tuple[Path, Path]]) -> None:
    """Raise `ExportError` where a photograph, or the result of another one, would be overwritten."""
    taken = {source.resolve() for source, _ in pairs}
    for source, target in pairs:
        if target.resolve() in taken:
            raise ExportError(f"{source} would overwrite {target}: choose another output or --suffix, or rename one")
        taken.add(target.resolve())


def format_from_name(path: Path) -> str:
    """Return the format of a file name's extension. Raises `ExportError` if it cannot be written."""
    try:
        return WRITTEN[path.suffix.lower()]
    except KeyError:
        raise ExportError(f"{path} cannot be written: end its name in one of {', '.join(WRITTEN)}") from None
