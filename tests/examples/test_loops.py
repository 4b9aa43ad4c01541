"""The loops without a Trainer, as a user runs them."""

from __future__ import annotations

import re
import runpy
import sys

import pytest

from tests.processes import ROOT, torchrun


def numbers(out):
    """Return the last line's two numbers: accuracy and share saved, in percent."""
    line = next(line for line in out.splitlines() if line.startswith("test accuracy"))
    return [float(number) for number in re.findall(r"[\d.]+(?= %)", line)]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a module as `python -m` does, in this process."""

    def run_module(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_module(name, run_name="__main__")
        return numbers(capsys.readouterr().out)

    return run_module


def test_plain_and_resumed(run, tmp_path):
    command = ["examples.loops.plain", "--epochs", 8, "--checkpoint", tmp_path / "last.ckpt"]
    accuracy, saved = run(*command)
    assert accuracy > 94
    assert 20 < saved < 40
    assert run(*command) == [accuracy, saved]  # nothing is left to train


@pytest.mark.ddp
def test_plain_in_two_processes(tmp_path):
    accuracy, saved = numbers(torchrun("examples.loops.plain", "--epochs", 6, folder=tmp_path))
    assert accuracy > 90
    assert 15 < saved < 40


def test_fabric(run):
    accuracy, saved = run("examples.loops.fabric", "--epochs", 6)
    assert accuracy > 94
    assert 15 < saved < 40


@pytest.mark.ddp
def test_fabric_in_two_processes_and_half_precision(tmp_path):
    command = ["examples.loops.fabric", "--epochs", 6, "--devices", 2, "--precision", "bf16-mixed"]
    accuracy, saved = numbers(torchrun(*command, folder=tmp_path))
    assert accuracy > 90
    assert 15 < saved < 40


@pytest.mark.parametrize("name", ["plain", "fabric"])
def test_they_are_short(name):
    assert len((ROOT / f"examples/loops/{name}.py").read_text().splitlines()) < 60
