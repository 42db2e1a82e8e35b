"""Download the HDR panoramas that the demo network is trained on: ``python -m demo.fetch_panoramas FOLDER``.

Photographs of real places by Poly Haven, CC0 1.0, from the npm package ``@pmndrs/assets`` 1.7.0 (needs ``npm``), which
holds each as a base64 string in ``hdri/<scene>.exr.js``.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@pmndrs/assets@1.7.0"
#: The scenes that the demo network is trained and measured on; the package has more.
SCENES = {
    "apartment", "bridge", "city", "dawn", "esplanade", "forest", "hall", "night", "park", "sky", "studio", "sunrise",
    "sunset", "warehouse", "workshop",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if shutil.which("npm") is None:
        sys.exit("error: npm not found: install Node.js, or put equirectangular *.exr panoramas into FOLDER yourself")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            for member in archive.getmembers():
                match = re.search(r"hdri/([a-z]+)\.exr\.js$", member.name)
                if match and match[1] in SCENES:
                    source = archive.extractfile(member)
                    assert source is not None
                    # The longest string is the file in base64, in some modules as a data URL.
                    encoded = max(re.findall(r"[A-Za-z0-9+/=]+", source.read().decode()), key=len)
                    (folder / f"{match[1]}.exr").write_bytes(base64.b64decode(encoded))
                    print(f"{match[1]}.exr")


if __name__ == "__main__":
    main()
