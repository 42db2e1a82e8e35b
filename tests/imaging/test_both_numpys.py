"""Compare the pixels of ``imaging`` under the server's NumPy 1.26 with those under NumPy 2."""

import subprocess
import sys

import numpy as np

from tests.conftest import ROOT, SERVER_PYTHON

SCRIPT = """
import sys, numpy as np
from pathlib import Path
from imaging import Options, decode, file_from_core, core_from_file
data = Path("demo/photos/coffee-table.jpg").read_bytes()
core = core_from_file(data)
result = decode(file_from_core(data, core, core ** np.float32(0.7), Options(format="png"))).pixels
np.savez(sys.argv[1], core=core, result=result)
print(np.__version__)
"""


def test_same_pixels(tmp_path):
    versions = {}
    for name, python in (("here", sys.executable), ("server", SERVER_PYTHON)):
        command = [str(python), "-c", SCRIPT, str(tmp_path / f"{name}.npz")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        versions[name] = done.stdout.split(".")[0]
    assert versions == {"here": "2", "server": "1"}
    here, server = (np.load(tmp_path / f"{name}.npz") for name in ("here", "server"))
    assert np.array_equal(here["core"], server["core"])
    assert np.abs(here["result"].astype(int) - server["result"]).max() <= 1
