"""Two gloo processes: equal values on both, and those of one process with the same global batch."""

from __future__ import annotations

import pytest
import torch

from lightning_prune import OrderDP, PruningMonitor
from lightning_prune.testing.processes import run_ranks
from tests.analysis.ddp_case import find_labels, run_rank
from tests.helpers import Model, make_loader, make_trainer

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_ranks(run_rank, folder, folder=folder)
    return folder


def test_wrong_labels_are_those_of_one_process(folder, tmp_path):
    """Also resumed in the middle of an epoch; 41 samples, so that one is there twice."""
    one, _ = find_labels(1, tmp_path)
    for rank in (0, 1):
        two = torch.load(folder / f"labels.{rank}.pt", weights_only=True)
        for name, values in one.items():
            assert torch.equal(two["whole"][name], values), name
            assert torch.equal(two["resumed"][name], values), name


def test_ranks_log_the_same(folder):
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["history"] == second["history"]
    for rank in (first, second):
        del rank["logged"]["prune/saved_seconds"]  # each rank's clock: for the progress bar only
    assert first["logged"] == second["logged"]  # on every rank, without a reduction
    assert {"prune/kept_fraction", "prune/score_mean", "prune/jaccard"} <= first["logged"].keys()
    assert first["warnings"] == []  # Lightning's advice to reduce them
    monitor = PruningMonitor(targets=1, gradient_every_n_epochs=1, gradient_samples=21)
    make_trainer(OrderDP(seed=2), monitor).fit(Model(), make_loader(batch_size=4))
    assert len(monitor.history) == 4
    for a, b in zip(first["history"], monitor.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
