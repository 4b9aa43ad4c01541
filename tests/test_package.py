"""What is built for users: a wheel with everything that the package reads, and a source archive with the rest."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile

import pytest
import yaml

import lightning_prune
from tests.fresh_environment import make_environment
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


def readme_sections():
    """Yield, of each section of the README, the extras that it names and its blocks."""
    for section in re.split(r"(?m)^## ", (ROOT / "README.md").read_text()):
        blocks = re.findall(r"```(python|bash|yaml)\n(.*?)```", section, re.DOTALL)
        named = {name for names in re.findall(r"lightning-prune\[([\w,]+)\]", section) for name in names.split(",")}
        yield named, [{"kind": kind, "text": text} for kind, text in blocks]


@pytest.mark.parametrize("with_extras", [False, True], ids=["no extra", "extras"])
def test_the_blocks_of_the_readme_run(built, tmp_path, with_extras):
    """In a fresh environment: sections that name no extra where none is installed, the others with those they name."""
    chosen = [(named, blocks) for named, blocks in readme_sections() if bool(named) == with_extras]
    extras = set().union(*(named for named, _ in chosen))
    blocks = [block for _, blocks in chosen for block in blocks]
    (wheel,) = built.glob("*.whl")
    programs = make_environment(tmp_path / "env", wheel, sorted(extras))
    (tmp_path / "run").mkdir()
    shutil.copytree(ROOT / "examples", tmp_path / "run" / "examples")  # of the clone, from which it is installed
    shutil.copy(ROOT / "tests" / "readme_run.py", tmp_path)
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    out, err = python(
        tmp_path / "readme_run.py",
        tmp_path / "blocks.json",
        program=programs / "python",
        cwd=tmp_path / "run",
        PYTHONPATH="",
    )
    assert int(out.splitlines()[-1].removeprefix("done: ")) >= 4
    assert "Traceback" not in err


def test_one_version():
    """Of the package, its metadata, its citation, and the newest part of the changelog, with its date or without."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    metadata = re.search(r'(?m)^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())[1]
    newest, date = re.search(r"(?m)^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text()).groups()
    assert citation["version"] == metadata == newest == lightning_prune.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata)
    assert re.fullmatch(r"unreleased|20\d\d-\d\d-\d\d", date)
    assert ("date-released" in citation) == (date != "unreleased")
