from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import EL2N
from lightning_prune.scoring.trackers.el2n import error_norm


def test_golden(golden, feed):
    torch.testing.assert_close(feed(EL2N(60)).compute(), golden["el2n_mean10"], rtol=0, atol=1e-6)


def test_range():
    logits = torch.tensor([[50.0, -50.0], [50.0, -50.0], [0.0, 0.0]])
    errors = error_norm(logits.softmax(1), torch.tensor([0, 1, 0]))
    torch.testing.assert_close(errors, torch.tensor([0.0, 2**0.5, 0.5**0.5]))


def test_partial_coverage_is_averaged_over_the_visits():
    tracker = EL2N(2, num_epochs=3)
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    for epoch in range(3):
        ids = torch.tensor([0, 1] if epoch != 1 else [0])
        tracker.update(ids, logits=logits[[epoch] * len(ids)], targets=torch.zeros(len(ids), dtype=torch.int64))
        tracker.end_epoch()
    errors = error_norm(logits.softmax(1), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(tracker.compute(), torch.stack([errors.mean(), errors[[0, 2]].mean()]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_epochs` to be an int >= 1"):
        EL2N(3, num_epochs=0)
    with pytest.raises(TypeError, match="`num_epochs`"):
        EL2N(3, num_epochs=2.5)
