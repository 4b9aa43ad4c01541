"""One language: British English in pages and docstrings, the field's words, units in the heads of tables.

Code, names, addresses and quoted titles are as they are elsewhere; so are PyTorch's own words, such as optimizer.
"""

from __future__ import annotations

import ast
import re

import pytest

from tests.processes import ROOT
from tests.test_links import PAGES

AMERICAN = re.compile(
    r"""\b(?:
    (?:mis|re|un)?label(?:ed|ing) | colors? | colored | gray(?:scale)? | neighbors? | neighborhoods?
    | behaviors? | favors? | favored | centers? | centered | meters? | judgment | model(?:ed|ing)
    | cancel(?:ed|ing) | licenses? | travel(?:ed|ing) | analyz\w+
    | (?:normal|synchron|(?:re)?initial|standard|memor|general|summar|random|regular|serial|minim|maxim|real|recogn
    |organ|categor|visual|parameter|parametr|vector|special|util|priorit)iz(?:e[ds]?|ing|ation)
    )\b""",
    re.I | re.X,
)
RIDDLES = re.compile(
    r"who has left|\bdear(?:er|est)\b|\bever after\b|\blikewise\b|\bhas not got\b|\bhave not got\b|\bwhom\b|\bare but\b"
    r"|\bis warned (?:of|about)\b|\bfor good\b|\blest\b|\bmeets all\b|\bit is all the same\b|\bso be it\b"
    r"|\bunlike there\b|\breckon\w*",
    re.I,
)
"""Turns that readers stumbled over: old words, and sentences that have to be read twice."""
UNIT = re.compile(r"\b(?:s|ms|µs|min|h|B|[KMG]i?B|bytes|seconds|minutes|hours|points|share|ratio|per|nats)\b|%|/")
WITHOUT = re.compile(
    r"(AP|AUROC|precision|val_accuracy)(, .*)?"  # from 0 to 1
    r"|n|seeds|epochs|rounds|samples never used|in standard errors|.* density|default|(loss )?weights|stop|correlation"
)
"""Columns of plain numbers: scores from 0 to 1, counts, and what is no quantity."""


def plain(text):
    """Return a text without code, addresses and quoted titles."""
    text = re.sub(r"(?ms)^ *```.*?^ *```\s*$", " ", text)
    text = re.sub(r"(?s)``.+?``|`[^`]+`", " ", text)
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "]", text)
    return re.sub(r'"[^"]*"', " ", text.replace("K-Center", ""))


def docstrings(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            text = re.sub(r"(?s)(References|Example):\n.*", "", text)
            yield re.sub(r"(?m)^ +\w+:", "", text)  # names of arguments


MODULES = sorted((ROOT / "lightning_prune").rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_in_british_english(page):
    assert AMERICAN.findall(plain(page.read_text())) == []


def test_docstrings_are_in_british_english():
    found = {
        (str(path.relative_to(ROOT)), word)
        for path in MODULES
        for text in docstrings(path)
        for word in AMERICAN.findall(plain(text))
    }
    assert found == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_no_riddles(page):
    assert RIDDLES.findall(plain(page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_heads_of_tables_have_units(page):
    """A column of bare numbers says in what, unless it is known to have no unit."""
    assert without_unit(page.read_text()) == []


def without_unit(text):
    """Return the heads of the columns of bare numbers that name no unit."""
    found = []
    for table in re.findall(r"(?m)(?:^\|.*\|$\n?)+", text):
        (_, first, *names), *rows = ([cell.strip() for cell in row.split("|")] for row in table.splitlines())
        for name, *cells in zip([first, *names], *(row[1:] for row in rows[1:]), strict=True):
            bare = any(re.fullmatch(r"[-+]?\**[\d.,]+\**( ± [\d.,]+)?", cell) for cell in cells)
            named = UNIT.search(name) or WITHOUT.fullmatch(name) or (name.isdigit() and first == "after epoch")
            if bare and not named:
                found.append(name)
    return found


def test_a_column_without_a_unit_is_found():
    assert without_unit("| run | wall time | CPU s | saved |\n|---|---|---|---|\n| a | 3.5 | 2 | 30 % |\n") == [
        "wall time"
    ]


def test_the_word_list_finds_what_it_is_for():
    assert AMERICAN.findall("Labeled data; a gray color is normalized. Optimizer, labelled, normalised.") == [
        "Labeled",
        "gray",
        "color",
        "normalized",
    ]
    assert plain('a `color` and [b](gray.md) "Gray"\n```\nlabeled\n```\n').split() == ["a", "and", "[b]"]
