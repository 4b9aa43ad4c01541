"""The loops without a Trainer, as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def run(*arguments):
    """Run a module; return its last line's two numbers: accuracy and share saved, in percent."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("test accuracy"))
    return [float(number) for number in re.findall(r"[\d.]+(?= %)", line)]


def test_plain_and_resumed(tmp_path):
    command = ["examples.loops.plain", "--epochs", 8, "--checkpoint", tmp_path / "last.ckpt"]
    accuracy, saved = run(*command)
    assert accuracy > 94
    assert 20 < saved < 40
    assert run(*command) == [accuracy, saved]  # nothing is left to train


@pytest.mark.ddp
@pytest.mark.timeout(900)
def test_plain_in_two_processes():
    accuracy, saved = run(*TORCHRUN, "examples.loops.plain", "--epochs", 6)
    assert accuracy > 90
    assert 15 < saved < 40


def test_fabric():
    accuracy, saved = run("examples.loops.fabric", "--epochs", 6)
    assert accuracy > 94
    assert 15 < saved < 40


@pytest.mark.ddp
@pytest.mark.timeout(900)
def test_fabric_in_two_processes_and_half_precision():
    accuracy, saved = run("examples.loops.fabric", "--epochs", 6, "--devices", 2, "--precision", "bf16-mixed")
    assert accuracy > 90
    assert 15 < saved < 40


@pytest.mark.parametrize("name", ["plain", "fabric"])
def test_they_are_short(name):
    assert len((ROOT / f"examples/loops/{name}.py").read_text().splitlines()) < 60
