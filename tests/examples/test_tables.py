"""The documented tables are what the code gives: one cell of each is made again, with the models of the text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from examples.cifar import fingerprint
from examples.experiments.analysis import surrogate, unbiasedness
from examples.experiments.reporting import table
from examples.experiments.tables import (
    ANALYSIS,
    CELLS,
    CIFAR,
    EXPERIMENTS,
    LABELS,
    MODELS,
    ROOT,
    STATIC,
    Cell,
    on_cifar,
    tables_under,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_each_table_is_what_the_code_gives(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    value = CELLS[name].run()
    assert CELLS[name].holds(value), f"{CELLS[name].documented()} is documented, but got {value}"
    assert torch.get_num_threads() == threads


def test_tables_of_the_analyses():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    lines = surrogate().splitlines()
    assert [line.split("|")[3].strip() for line in lines[-6:]] == ["10.00", "3.33", "2.00", "1.43", "1.11", "1.00"]
    z = [abs(float(line.split("|")[3])) for line in unbiasedness().splitlines()[2:]]
    assert [value < 5 for value in z] == [True, True, True, False, False, True, False, True]  # RePB's at its start


LEFT_OUT = {"CIFAR-10, all 50,000 images", "Time: `time`", "ResNet-18 on a GPU", "The table", "On images", "Cost"}
"""Headings of tables that list something, or that a GPU or a clock made."""


def test_every_table_has_a_cell_that_is_checked():
    known = [*CELLS.values(), *on_cifar(Path()).values()]
    for page in (ANALYSIS, CIFAR, EXPERIMENTS, LABELS, STATIC):
        text = (ROOT / page).read_text()
        for heading in re.findall(r"(?m)^#+ (.*)$", text):
            cells = [cell for cell in known if cell.page == page and heading.startswith(cell.heading)]
            assert heading in LEFT_OUT or bool(cells) == bool(tables_under(text, heading)), heading
            assert all(cell.documented()[2] for cell in cells)


def test_drawn_images_show_another_program(monkeypatch):
    """Images that are not moved, or a schedule that ends otherwise, are seen."""
    monkeypatch.chdir(ROOT)
    cell = CELLS["cifar, drawn, methods, full data"]
    assert not cell.holds(fingerprint.loss("methods", None, "--model.lr=0.0101"))
    monkeypatch.setattr("examples.cifar.task.crop_and_flip", lambda images: images)
    assert not cell.holds(cell.run())


@pytest.mark.parametrize(("page", "words"), MODELS)
def test_pages_say_how_many_weights_the_models_have(page, words):
    count = sum(parameter.numel() for parameter in MODELS[page, words]().parameters())
    assert words.format(count) in " ".join((ROOT / page).read_text().split())


def test_a_cell_that_differs_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("## A\n\n| m | acc |\n|---|---|\n| x | 0.90 ± 0.01 |\n| y | 3 |\n\n## B\n")
    monkeypatch.setattr("examples.experiments.tables.ROOT", tmp_path)
    cell = Cell("a.md", "A", ("x",), "acc", float)
    assert cell.documented() == (0.9, 0.01, 0.01)
    assert [cell.holds(value) for value in (0.871, 0.9, 0.929, 0.869, 0.931)] == [True, True, True, False, False]
    exact = cell._replace(row=("y",))
    assert [exact.holds(value) for value in (3.0, 4.5)] == [True, False]
    for wrong in (cell._replace(row=("z",)), cell._replace(heading="B"), cell._replace(column="f1")):
        with pytest.raises(LookupError, match="Expected the row"):
            wrong.documented()
