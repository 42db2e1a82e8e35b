"""Collect the fidelity ladders of the published engines in ``demo/results`` (``python -m demo.ladder``).

First build each precision as its own version::

    make engine PRECISION=fp32 VERSION=1   # then bf16, fp16 and int8 as versions 2, 3 and 4

then run this; ``make report`` writes the table of docs/fidelity.md.
"""

from __future__ import annotations

import json
from pathlib import Path

from export.files import checkpoint_path, sha256
from export.names import MODEL
from export.publish import documents, versions, write_json

FOLDERS = (Path("engines"), Path("model_repository"))
PACKAGE = Path(__file__).parent / "package"
RESULTS = Path(__file__).parent / "results/ladder.json"


def main() -> None:
    ladders = {
        f"{document['precision']} {document['target']}": {
            "fidelity": document["fidelity"],
            "ranges": document["ranges"] and document["ranges"][:10],
            "int8": document["int8"],
            "runtime": {key: document["runtime"].get(key) for key in ("name", "layers", "casts", "bytes", "version")},
            "peak_memory_mib": document["peak_memory_mib"],
            "cpu": document["machine"]["cpu"],
        }
        for folder in FOLDERS
        for version in versions(folder / MODEL)
        for document in documents(folder / MODEL / str(version))
        if document["package"]["checkpoint_sha256"] == sha256(checkpoint_path(PACKAGE))
    }
    write_json(RESULTS, ladders)
    print(f"{RESULTS}: {json.dumps(sorted(ladders))}")


if __name__ == "__main__":
    main()
