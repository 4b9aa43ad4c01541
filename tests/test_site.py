"""The site is built as `make docs` does it, warnings are errors; and its reference has every public name."""

from __future__ import annotations

import json
import re
import shutil
from importlib import import_module

import pytest

from tests.processes import ROOT, python

MODULES = ("", ".analysis", ".compare", ".data", ".functional", ".report", ".schedules", ".scoring", ".testing")
TUTORIALS = sorted((ROOT / "examples" / "tutorials").glob("plot_*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of a copy of the docs, so that nothing is left of an earlier build."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("docs", "examples", "lightning_prune"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    shutil.rmtree(folder / "docs" / "tutorials", ignore_errors=True)
    python("-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", folder / "docs", folder / "html", cwd=folder)
    return folder / "html"


def test_every_page_is_built(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page.parts[0] not in ("_build", "tutorials")} <= {
        path.relative_to(site) for path in site.rglob("*.html")
    }


def test_the_tutorials_ran_and_can_be_had_as_notebooks(site):
    for script in TUTORIALS:
        page = (site / "tutorials" / f"{script.stem}.html").read_text()
        assert "sphx-glr-script-out" in page, script.name  # what it printed
        assert "sphx-glr-single-img" in page, script.name  # what it drew
        (notebook,) = (site / "_downloads").rglob(f"{script.stem}.ipynb")
        assert json.loads(notebook.read_text())["nbformat"] == 4


def test_it_can_be_searched(site):
    index = (site / "searchindex.js").read_text()
    assert "infobatch" in index
    assert (site / "search.html").exists()


def test_it_needs_no_network(site):
    """No page loads a script, a style, a font or a picture from elsewhere."""
    loads = re.compile(r"""<(?:script|img|link)\b[^>]*(?:src|href)="(https?:)?//""")
    for page in site.rglob("*.html"):
        found = [match[0] for match in loads.finditer(page.read_text()) if 'rel="canonical"' not in match[0]]
        assert not found, page


def documented():
    """Return the objects that the pages of the reference name, by where they say they are."""
    names = []
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for module, lines in re.findall(r"(?m)^\.\. api:: (\S+)\n\n((?:   \w+\n)+)", page.read_text()):
            names += [(module, name) for name in lines.split()]
    return names


def test_the_reference_has_every_public_name_once():
    names = documented()
    assert len(set(names)) == len(names)
    shown = [getattr(import_module(module), name) for module, name in names]
    assert len({id(thing) for thing in shown}) == len(shown)
    for suffix in MODULES:
        module = import_module(f"lightning_prune{suffix}")
        missing = [name for name in module.__all__ if not any(getattr(module, name) is thing for thing in shown)]
        assert missing == [], module.__name__
    assert {(module, name) for module, name in names if name not in import_module(module).__all__} == set()


def test_every_module_with_public_names_is_looked_at():
    files = [*(ROOT / "lightning_prune").glob("*.py"), *(ROOT / "lightning_prune").glob("*/__init__.py")]
    found = {
        path.parent.name if path.stem == "__init__" else path.stem for path in files if "__all__" in path.read_text()
    }
    assert found - {"cli", "mistakes"} == {module.removeprefix(".") or "lightning_prune" for module in MODULES}
