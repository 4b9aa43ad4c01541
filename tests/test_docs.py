"""The pages: yaml is what the command line accepts; every method, score and public name has its place."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

import lightning_prune
from lightning_prune.scoring.features.feature_scores import FEATURE_METHODS

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

FOLDER = Path(__file__).parent.parent / "docs" / "methods"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.stem != "README")
SCORES = sorted(p for p in (FOLDER.parent / "scores").glob("*.md") if p.stem not in ("README", "selectors"))
MODULES = ("", ".analysis", ".compare", ".data", ".functional", ".report", ".schedules", ".scoring", ".testing")
STATIC = (FOLDER.parent / "static-results.md").read_text()
SNIPPETS = [
    pytest.param(text, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.fixture(scope="module")
def parser():
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser


@pytest.mark.parametrize("text", SNIPPETS)
def test_snippets_are_accepted(text, parser):
    """Short names, arguments and their types, as `lightning-prune fit` checks them; and the objects can be built."""
    trainer = yaml.safe_load(text)["trainer"]
    callbacks = parser.parse_object({"trainer": trainer}).trainer.callbacks
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    for callback in callbacks:
        if "irreducible_losses" in callback.init_args:  # a file that the reader is to make
            continue
        build = LightningArgumentParser()
        build.add_subclass_arguments(lightning_prune.PruningCallback, "method")
        method = build.instantiate_classes(build.parse_object({"method": callback})).method
        assert isinstance(method, lightning_prune.PruningCallback)


def test_a_wrong_argument_is_not_accepted(parser):
    bad = {"trainer": {"callbacks": [{"class_path": "InfoBatch", "init_args": {"prune_ration": 0.5}}]}}
    with pytest.raises(SystemExit):
        parser.parse_object(bad)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_have_what_a_reader_looks_for(page):
    text = page.read_text()
    headings = re.findall(r"(?m)^## (.*)$", text)
    assert headings[:2] == ["When to choose it", "Arguments"]
    assert "Cost" in headings
    assert "```yaml" in text
    assert len(text.splitlines()) < 80


@pytest.mark.parametrize("page", SCORES, ids=lambda page: page.stem)
def test_pages_of_scores(page, parser):
    text = page.read_text()
    headings = re.findall(r"(?m)^## (.*)$", text)
    assert headings[:3] == ["When to choose it", "Arguments", "Cost"]
    assert headings[-1] == "Reference"
    assert re.search(r"\*\*(High|Low|The\s+middle)\s+is\s+kept|The\s+first\s+choice|All\s+those\s+chosen", text)
    for snippet in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        parser.parse_object({"trainer": yaml.safe_load(snippet)["trainer"]})


@pytest.mark.parametrize("page", SCORES, ids=lambda page: page.stem)
def test_figures_of_scores_are_those_of_the_table_of_all(page):
    """Each row of a page, on accuracy or on wrong labels, stands in ``docs/static-results.md`` by the score's name."""
    rows = re.findall(r"(?m)^\| (?:(.*): )?(test accuracy|share of wrong labels).*? \| (.*) \|$", page.read_text())
    assert rows
    by_kind = dict(zip(("test accuracy", "share of wrong labels"), STATIC.split("## 20 % wrong labels"), strict=True))
    for name, kind, figures in rows:
        names = [name] if name else re.findall(r"(?m)^# (\w+):", page.read_text())
        assert f"| {names[0]} | {figures} |" in by_kind[kind]


def test_every_score_has_a_page():
    scoring = lightning_prune.scoring
    trackers = {
        n for n, thing in vars(scoring).items() if isinstance(thing, type) and issubclass(thing, scoring.Tracker)
    }
    names = {re.match(r"# (\w+):", page.read_text())[1] for page in SCORES}
    assert names == (trackers - {"Tracker"}) | set(FEATURE_METHODS)
    listed = re.findall(r"\[(\w+)\]\((\w+\.md)\)", (FOLDER.parent / "scores" / "README.md").read_text())
    assert {file for name, file in listed if name in names} == {page.name for page in SCORES}


def test_the_numbers_of_the_losses_page():
    failed, tried = doctest.testfile(str(FOLDER.parent / "losses.md"), module_relative=False)
    assert tried > 10
    assert failed == 0


def test_every_line_of_the_losses_page_is_one_that_python_accepts():
    text = (FOLDER.parent / "losses.md").read_text()
    lines = re.findall(r"(?m)^\| .* \| .*`(weighted_loss\(.*?\))`", text)
    assert len(lines) >= 9
    for line in lines:
        compile(line, "losses.md", "eval")


def documented():
    """Return the objects that the pages of the reference name, by where they say they are."""
    names = []
    for page in (FOLDER.parents[1] / "docs" / "api").glob("*.md"):
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
    files = [
        *(FOLDER.parents[1] / "lightning_prune").glob("*.py"),
        *(FOLDER.parents[1] / "lightning_prune").glob("*/__init__.py"),
    ]
    found = {
        path.parent.name if path.stem == "__init__" else path.stem for path in files if "__all__" in path.read_text()
    }
    assert found - {"cli", "known", "mistakes"} == {module.removeprefix(".") or "lightning_prune" for module in MODULES}
