"""The package of somebody else passes its own tests, in its own folder, with its own configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "third_party"


def test_it_passes_the_contracts():
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=FOLDER, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 50
    assert "skipped" not in done.stdout


def test_it_asks_for_an_extra_that_there_is():
    assert '"lightning-prune[testing]"' in (FOLDER / "pyproject.toml").read_text()
    assert re.search(r"(?m)^testing = \[\"pytest", (ROOT / "pyproject.toml").read_text())
