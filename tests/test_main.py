"""The front of the command line: answers that need no Lightning, and come at once."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
from lightning.pytorch import Trainer

import lightning_prune
from lightning_prune import cli, early, known
from lightning_prune.__main__ import COMMANDS, main
from lightning_prune.analysis.trainer import CommandTrainer
from lightning_prune.compare.methods import own_methods
from tests.processes import python

TYPOS = [
    (["compair", "--config", "x"], "Expected a command, but got 'compair'. Did you mean `compare`?"),
    (["--confg", "x"], "Expected a command, but got '--confg'. Known: fit, "),
    (["methods", "infobach"], "the name of a pruning method, but got 'infobach'. Did you mean `InfoBatch`?"),
    (["fit", "--cofnig", "x"], "Expected an argument of `fit`, but got --cofnig. Did you mean `--config`?"),
    (["fit", "--config", "nowhere.yaml"], "Expected `--config` to name a file, but there is none at 'nowhere.yaml'."),
    (["fit"], "Expected a module to train, but got neither `--config` nor `--model`. A configuration looks like this:"),
    (["score", "--model=my.Model"], "Expected `--save_to`, which `score` needs, but got none. Score file to write"),
    (["fit", "--trainer.max_epoch=3"], "but got --trainer.max_epoch. Did you mean `--trainer.max_epochs`?"),
    (["fit", "--trainer.callbacks=infobach"], "but got `infobach`. Did you mean `InfoBatch`?"),
    (["fit", "--trainer.callbacks+=EarlyStoping"], "but got `EarlyStoping`. Did you mean `EarlyStopping`?"),
    (["fit", "--trainer.callbacks=RePB", "--trainer.callbacks.prune_rat=1"], "mean `--trainer.callbacks.prune_ratio`?"),
    (["score", "--metod=TDDS"], "Expected an argument of `score`, but got --metod. Did you mean `--method`?"),
    (["find-label-issues", "--outptu=x"], "of `find-label-issues`, but got --outptu. Did you mean `--output`?"),
    (["advise", "--config", "x", "--sav=0.3"], "but got --sav. Did you mean --save?"),
    (["advise", "--config", "x", "--save=1.2"], "Expected `--save` to be a number in (0, 1), but got 1.2."),
    (["compare", "--config", "x", "--methods", "InfoBach"], "but got 'InfoBach'. Did you mean `InfoBatch`?"),
    (["compare", "--config", "x", "--methods", "RePB", "--seed", "3"], "but got --seed. Did you mean --seeds?"),
    (["report", "run", "--ouput", "x.html"], "unrecognized arguments: --ouput"),
]
IN_FILES = [
    ("trainer:\n  max_epochs: 3\n   logger: false #", "to be yaml, but it is not: mapping values are not allowed"),
    ("trainr: {max_epochs: 3} #", "but got `trainr`. Did you mean `trainer`?"),
    ("trainer:\n  max_epochs: 3\n  max_step: 3 #", "but got `max_step`. Did you mean `max_steps`?"),
    ("trainer.max_epoch: 3 #", "but got `max_epoch`. Did you mean `max_epochs`?"),
    ("trainer:\n  callbacks:\n  - InfoBatch: {prune_ratio: 0.5} #", "Write it as:\n    - class_path: InfoBatch\n"),
    ("trainer:\n  callbacks:\n  - class_path: InfoBach #", "but got `InfoBach`. Did you mean `InfoBatch`?"),
    (
        "trainer:\n  callbacks:\n    class_path: lightning_prune.RePB\n    init_args: {prune_rate: 0.5} #",
        "Expected arguments of RePB, but got `prune_rate`. Did you mean `prune_ratio`?",
    ),
    (
        "trainer:\n  callbacks:\n    class_path: Budget\n    init_args: {base: {class_path: lightning_prune.RepB}} #",
        "but got `lightning_prune.RepB`. Did you mean `RePB`?",
    ),
]


HELPED = [name for name in COMMANDS if name != "methods"]


def test_answers_import_neither_torch_nor_lightning():
    code = f"""
import sys
sys.argv = ["/usr/bin/lightning-prune"]
from lightning_prune.__main__ import main
for args in (["--version"], [], ["--help"], ["methods"], ["methods", "RePB"]):
    main(args)
ended = []
for args in ([name, "--help"] for name in {HELPED}):
    try:
        main(args)
    except SystemExit as error:
        ended.append(error.code)
for args in {[args for args, _ in TYPOS]}:
    try:
        main(args)
    except SystemExit as error:
        ended.append(error.code)
assert ended == [0] * {len(HELPED)} + [2] * {len(TYPOS)}, ended
assert not {{"torch", "numpy", "lightning", "jsonargparse"}} & set(sys.modules)
"""
    out, _ = python("-c", code)
    assert out.startswith(f"lightning-prune {lightning_prune.__version__}\nusage:")


def test_what_is_read_from_files_is_what_is_imported():
    assert set(known.trainer_arguments()) == set(inspect.signature(Trainer).parameters)
    assert set(known.lightning_callbacks()) == set(import_module("lightning.pytorch.callbacks").__all__)
    assert set(known.names_of_methods()) == set(own_methods())
    assert set(known.callbacks()) == set(lightning_prune.__all__)
    for name, arguments in known.callbacks().items():
        thing = getattr(lightning_prune, name)
        if arguments is not None and isinstance(thing, type):
            assert arguments == set(inspect.signature(thing).parameters), name
    for command, skipped in cli.PruneCLI.subcommands().items():
        method = inspect.signature(getattr(CommandTrainer, command)).parameters
        assert set(known.command_arguments(command.replace("_", "-"))) == set(method) - {"self", *skipped}
    assert known.trainer_arguments()["max_epochs"].help.startswith("Stop training once this number of epochs")


@pytest.mark.parametrize("command", HELPED)
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    assert error.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: lightning-prune {command} ")
    for argument in known.command_arguments(command) if command not in cli._OTHER_COMMANDS else ():
        assert f"\n  --{argument}: " in told


def test_every_command_is_listed():
    assert {name.replace("-", "_") for name in COMMANDS} == {
        *cli.PruneCLI.subcommands(),
        *cli._OTHER_COMMANDS,
        "methods",
    }


def test_every_method_is_described(capsys):
    names = [name for name in lightning_prune.__all__ if cli._is_method(name)]
    main(["methods"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(listed) == sorted(names)
    for name in names:
        main(["methods", name])
        told = capsys.readouterr().out
        for argument in list(inspect.signature(getattr(lightning_prune, name)).parameters):
            assert f"\n    {argument}: " in told
        assert "References:" in told or "Example:" in told


@pytest.mark.parametrize(("args", "message"), TYPOS)
def test_typos(args, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), IN_FILES)
def test_typos_in_a_file(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    for command in ("fit", "advise"):
        with pytest.raises(SystemExit) as error:
            main([command, "--config", str(tmp_path / "run.yaml")])
        assert error.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: Expected ")
        assert message in told
        number = next(i for i, line in enumerate(content.splitlines(), 1) if "#" in line)
        assert f"run.yaml, line {number}.\n" in told


@pytest.mark.parametrize(
    "args",
    [
        ["--model=my.Model", "--trainer.callbacks=InfoBatch", "--trainer.callbacks.prune_ratio=0.3"],
        ["--model.class_path=Model", "--trainer.callbacks+=my.Callback", "--trainer.callbacks.anything=0.3"],
        ["--model", "my.Model", "--trainer.callbacks", "Mine", "--trainer.callbacks.anything=0.3"],
        ["--trainer.callbacks.help=RePB"],
        ["--print_config"],
        ["--trainer.callbacks=EarlyStopping", "--trainer.logger.save_dir=logs", "--model.width", "3", "-c", "x"],
        ["--config", "{trainer: {max_epochs: 3}}", "--print_config=skip_null", "--ckpt_path=last"],
    ],
)
def test_what_may_be_right_is_left_to_lightning(args):
    early.check("fit", args)


def test_files_that_may_be_right_are_left_to_lightning(tmp_path):
    path = tmp_path / "run.yaml"
    for content in (
        "trainer: {callbacks: [EarlyStopping, {class_path: my.Callback, init_args: {any: 1}}]}\nmodel: my.Model",
        "trainer: trainer.yaml\nmodel: {class_path: my.Model, init_args: {width: 3}}\nseed_everything: 1",
        "model: my.Model\ntrainer.max_epochs: 3\ntrainer:\n  callbacks: {class_path: lightning_prune.InfoBatch}",
        "model.class_path: my.Model\ntrainer: {callbacks: null}",
        "- not: a mapping",
    ):
        path.write_text(content)
        early.check("fit", ["--config", str(path)])
        early.check("compare", [f"--config={path}", "--methods", "RePB"])
