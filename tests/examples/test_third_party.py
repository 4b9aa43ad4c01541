"""The package of somebody else passes its own tests, in its own folder, with its own configuration."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.processes import forked

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "third_party"


def run_its_tests():
    os.chdir(FOLDER)
    sys.path[0] = ""
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]))


def test_it_passes_the_contracts(tmp_path):
    out = forked(run_its_tests, folder=tmp_path)
    assert int(re.search(r"(\d+) passed", out)[1]) >= 50
    assert "skipped" not in out


def test_it_asks_for_an_extra_that_there_is():
    assert '"lightning-prune[testing]"' in (FOLDER / "pyproject.toml").read_text()
    assert re.search(r"(?m)^testing = \[\"pytest", (ROOT / "pyproject.toml").read_text())
