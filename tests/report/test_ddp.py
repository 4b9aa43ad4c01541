"""Two gloo processes: one report, that of one process with the same global batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_prune import OrderDP, PruningReport
from lightning_prune.report import RunRecord
from lightning_prune.testing.processes import run_ranks
from tests.helpers import Model, make_loader, make_trainer

pytestmark = pytest.mark.ddp


def fit(path, batch_size, **kwargs):
    report = PruningReport(path)
    make_trainer(OrderDP(seed=2), report, **kwargs).fit(Model(), make_loader(41, batch_size=batch_size))
    return report


def run_rank(rank, folder):
    report = fit(folder / "two.json", 2, devices=2, strategy="ddp")
    torch.save(report.history.state_dict(), folder / f"{rank}.pt")
    assert (report.record is None) == (rank > 0)
    assert bool(report.leaves) == (rank == 0)


def test_ranks_report_together(tmp_path):
    """41 samples, so that one is there twice; losses are equal up to rounding of their gradients."""
    run_ranks(run_rank, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, values in first.items():
        if isinstance(values, torch.Tensor):
            assert torch.equal(values.nan_to_num(-1), second[name].nan_to_num(-1)), name
    fit(tmp_path / "one.json", 4)
    one, two = RunRecord.load(tmp_path / "one.npz"), RunRecord.load(tmp_path / "two.npz")
    for name in ("times", "last_epoch", "given"):
        np.testing.assert_array_equal(one.columns[name], two.columns[name])
    for name in ("mean", "spread", "first", "last"):
        np.testing.assert_allclose(one.columns[name], two.columns[name], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(one.class_kept, two.class_kept)
    assert [e["kept"] for e in one.meta["epochs"]] == pytest.approx([e["kept"] for e in two.meta["epochs"]])
