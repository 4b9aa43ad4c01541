"""The site, built as `make docs` does it: warnings are errors, tutorials run, nothing comes from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest

from tests.processes import ROOT, forked

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
    forked(build, folder, folder=folder)
    return folder / "html"


def build(folder):
    import sphinx.cmd.build  # only here: each process that runs tests imports each module of them

    os.chdir(folder)
    sys.exit(sphinx.cmd.build.main(["-q", "-W", "--keep-going", "-b", "html", "docs", "html"]))


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


def test_the_page_of_tutorials_has_a_title(site):
    assert "<title>Tutorials" in (site / "tutorials" / "index.html").read_text()


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
