"""The front of the command line: answers that need no Lightning, and come at once."""

from __future__ import annotations

import inspect

import pytest

import lightning_prune
from lightning_prune import cli
from lightning_prune.__main__ import COMMANDS, main
from tests.processes import python


def test_answers_import_neither_torch_nor_lightning():
    code = """
import sys
sys.argv = ["/usr/bin/lightning-prune"]
from lightning_prune.__main__ import main
for args in (["--version"], [], ["--help"], ["methods"], ["methods", "RePB"]):
    main(args)
assert not {"torch", "numpy", "lightning"} & set(sys.modules)
"""
    out, _ = python("-c", code)
    assert out.startswith(f"lightning-prune {lightning_prune.__version__}\nusage:")


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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compair", "--config", "x"], "Expected a command, but got 'compair'. Did you mean `compare`?"),
        (["--confg", "x"], "Expected a command, but got '--confg'. Known: fit, "),
        (
            ["methods", "infobach"],
            "Expected the name of a pruning method, but got 'infobach'. Did you mean `InfoBatch`?",
        ),
    ],
)
def test_typos(args, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
