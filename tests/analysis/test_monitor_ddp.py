"""Two gloo processes: equal values on both, and those of one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_prune import OrderDP, PruningMonitor
from tests.helpers import Model, make_loader, make_trainer

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.ddp
def test_ranks_log_the_same(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.analysis.ddp_case", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["history"] == second["history"]
    assert first["logged"] == second["logged"]  # on every rank, without a reduction
    assert {"prune/kept_fraction", "prune/score_mean", "prune/jaccard"} <= first["logged"].keys()
    assert first["warnings"] == []  # Lightning's advice to reduce them
    monitor = PruningMonitor(targets=1, gradient_every_n_epochs=1, gradient_samples=21)
    make_trainer(OrderDP(seed=2), monitor).fit(Model(), make_loader(batch_size=4))
    assert len(monitor.history) == 4
    for a, b in zip(first["history"], monitor.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
