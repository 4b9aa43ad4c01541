"""What is built for users: a wheel with everything that the package reads, and a source archive with the rest."""

from __future__ import annotations

import re
import tarfile
import zipfile

import pytest
import yaml

import lightning_prune
from tests.processes import ROOT, python


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", folder)
    return folder


def test_the_wheel_holds_the_package(built):
    (wheel,) = built.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("lightning_prune/")}
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "lightning_prune").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert packed == files
    assert "lightning_prune/py.typed" in packed


def test_the_source_archive_holds_tests_examples_and_docs(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        tops = {name.split("/")[1] for name in opened.getnames() if "/" in name}
    assert {
        "lightning_prune",
        "tests",
        "examples",
        "benchmarks",
        "docs",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    } <= tops
    assert not {".venv", "results", ".ci"} & tops


def test_the_description_can_be_shown(built):
    out, _ = python("-m", "twine", "check", "--strict", *sorted(built.iterdir()))
    assert out.count("PASSED") == 2


def test_one_version():
    """Of the package, its metadata and its citation."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    metadata = re.search(r'(?m)^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())[1]
    assert citation["version"] == metadata == lightning_prune.__version__
