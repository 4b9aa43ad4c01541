"""The package of somebody else passes its own tests, in its own folder, with its own configuration."""

from __future__ import annotations

import re
from pathlib import Path

from tests.processes import python

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "third_party"


def test_it_passes_the_contracts():
    out, _ = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", cwd=FOLDER)
    assert int(re.search(r"(\d+) passed", out)[1]) >= 50
    assert "skipped" not in out


def test_it_asks_for_an_extra_that_there_is():
    assert '"lightning-prune[testing]"' in (FOLDER / "pyproject.toml").read_text()
    assert re.search(r"(?m)^testing = \[\"pytest", (ROOT / "pyproject.toml").read_text())
