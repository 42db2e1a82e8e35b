"""Read a model package: the folder a training team hands over.

The weights alone are enough: every hyper-parameter but ``eps`` is read from them. What the other files claim is
compared with them, and a difference becomes a remark.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.files import checkpoint_path
from export.network.restormer import Restormer
from export.package.checkpoint import Checkpoint, checkpoint_from_file
from export.package.documents import Documents, Flat, compare_claims, documents_from_folder
from export.package.trained_frame import TrainedFrame, trained_frame


@dataclass(frozen=True, kw_only=True)
class Package(Checkpoint):
    """A checkpoint and what the files beside it state; ``remarks`` also name contradictions.

    ``frame`` is the form of the photographs that the network was trained on, if ``config.json`` states it.
    """

    folder: Path
    frame: TrainedFrame
    training_info: Flat


def package_from_folder(folder: Path) -> Package:
    """Read and check a package. Raises `ExportError` for anything that is wrong with it."""
    return package_from_checkpoint(checkpoint_path(folder), folder)


def package_from_checkpoint(path: Path, folder: Path | None = None) -> Package:
    """Read a checkpoint and, if a folder is given, the package's other files in it."""
    if not path.is_file():
        raise ExportError(f"no checkpoint at {path}")
    documents = documents_from_folder(folder) if folder else Documents()
    checkpoint = checkpoint_from_file(path, documents.eps)
    frame = trained_frame(documents.config, checkpoint.convention)
    remarks = (
        *checkpoint.remarks,
        *documents.remarks,
        *compare_claims(documents, checkpoint.architecture, checkpoint.parameters),
        *_training_remarks(documents.training_info, checkpoint),
        *filter(None, [frame.remark]),
    )
    settings = {**vars(checkpoint), "remarks": remarks}
    return Package(**settings, folder=folder or path.parent, frame=frame, training_info=documents.training_info)


def network_from_package(package: Package) -> Restormer:
    """Build the network with the package's weights, float32, in evaluation mode."""
    network = Restormer(package.architecture)
    network.load_state_dict({name: tensor.float() for name, tensor in package.weights.items()})
    return network.eval()


def _training_remarks(training_info: Flat, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield where training_info.json and the checkpoint contradict each other."""
    for name in ("epoch", "val_l1"):
        claim, fact = training_info.get(name), checkpoint.scalars.get(name)
        if (
            isinstance(claim, int | float)
            and isinstance(fact, int | float)
            and not math.isclose(claim, fact, rel_tol=1e-6)
        ):
            yield f"training_info.json says {name} = {claim}, the checkpoint says {fact}"
