"""Every Markdown page of the repository: its links, its tables, its blocks of code."""

from __future__ import annotations

import ast
import re
from urllib.parse import urlsplit

import pytest
import yaml

from tests.processes import ROOT

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    if not {"_build", "results"} & set(path.parts) and "docs/tutorials" not in path.as_posix()
)


def prose(page):
    """Return a page's text without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```\s*$", "", page.read_text())


def anchors(page):
    """Return the names of a page's headings, as GitHub and the site make them."""
    found = []
    for heading in re.findall(r"(?m)^#{1,6} (.*)$", prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


def links(page):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            parts = urlsplit(link)
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_pages_have_links():
    assert len(PAGES) > 60
    assert sum(len(links(page)) for page in PAGES) > 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_whole(page):
    """Every row of a table has as many cells as its head."""
    for table in re.findall(r"(?m)(?:^\|.*\|$\n?)+", prose(page)):
        rows = table.splitlines()
        if len(rows) > 1 and re.fullmatch(r"\|[\s:|-]+\|", rows[1]):
            assert {len(re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in rows} == {
                rows[0].count("|") + 1
            }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_code_can_be_read(page):
    blocks = re.findall(r"(?ms)^```(python|yaml)\n(.*?)^```", page.read_text())
    for language, text in blocks:
        if language == "yaml":
            yaml.safe_load(text)
        elif not text.startswith(">>>"):
            ast.parse(text)


def test_pages_of_the_guide_explain_their_words():
    """By a link into the glossary; not those that are one, tell of the project, or are short."""
    own = {"changelog", "cifar", "contributing", "glossary", "how-it-works", "index", "epoch-is-a-plan", "tasks"}
    pages = [page for page in PAGES if page.parent == ROOT / "docs" and page.stem not in own]
    assert len(pages) > 12
    assert [page.stem for page in pages if "](glossary.md#" not in page.read_text()] == []
