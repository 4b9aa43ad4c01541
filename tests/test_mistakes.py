"""What is said beside a mistake on the command line."""

from __future__ import annotations

import sys

import pytest

from lightning_prune.mistakes import hints

FILE = """\
trainer:
  max_epoch: 3
  callbacks:
    - InfoBatch:
        prune_ratio: 1.5
    - class_path: OrderDB
model: nowhere.Model
data:
  class_path: examples.digits.task.DigitsModel
  init_args: {width: 3, height: 2}
"""


@pytest.fixture
def args(tmp_path):
    (tmp_path / "run.yaml").write_text(FILE)
    return ["--config", str(tmp_path / "run.yaml")]


@pytest.mark.parametrize(
    ("message", "line", "hint"),
    [
        ("Subcommand 'fit' does not accept option 'trainer.max_epoch'", 2, "Did you mean `trainer.max_epochs`?"),
        ("Option 'InfoBatch.prune_ratio' is not accepted", 5, "Write it as:"),
        ('Parser key "trainer.callbacks":\n Expected a dot import path string: OrderDB', 6, "Did you mean `OrderDP`?"),
        ("Problem with given class_path 'nowhere.Model':\n No module named 'nowhere'", 7, "Modules are looked for in "),
        ("Expected `prune_ratio` to be a number in [0, 1), but got 1.5.", 5, "See "),
        ("Parser key \"max_epoch\":\n Expected a <class 'int'>. Got value: two", 2, "See "),
        ("Option 'height' is not accepted", 10, "DigitsModel takes width, lr."),
    ],
)
def test_in_a_file(message, line, hint, args):
    told = hints(message, args)
    assert hint in told[0]
    assert told[-1] == f"  See {args[1]}, line {line}."
    assert hints(message, ["--config=" + args[1]]) == told


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("seed=3", "seed_everything"),
        ("trainer.callbacks.prune_rat=0.5", "trainer.callbacks.prune_ratio"),
        ("cofnig=x", "config"),
        ("metod=TDDS", "method"),
        ("sav=0.3", "save"),
    ],
)
def test_an_option(option, near):
    assert hints(f"unrecognized arguments: --{option}", []) == [f"  Did you mean `{near}`?"]


def test_an_option_that_is_known_elsewhere():
    assert not [line for line in hints("Option 'save_to' is not accepted", []) if "Did you mean" in line]


@pytest.mark.parametrize(
    ("message", "near"),
    [
        ("Expected `method` to be one of ['AUM', 'TDDS'], but got 'TDS'.", "TDDS"),
        ("Expected each of `--methods` to be one of RePB, InfoBatch, or a yaml file, but got 'InfoBach'.", "InfoBatch"),
        ("Expected `--metric` to be one that the training logs, of ['val_acc'], but got 'val_ac'.", "val_acc"),
    ],
)
def test_one_of_several_words(message, near):
    assert hints(message, [])[0] == f"  Did you mean `{near}`?"


def test_where_modules_are_looked_for():
    assert sys.path[0] in hints("No module named 'nowhere'", [])[0]


def test_nothing_to_say(args):
    assert hints("Expected the impossible", [*args, "--config", "missing.yaml"]) == []
