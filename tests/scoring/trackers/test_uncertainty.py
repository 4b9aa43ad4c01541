"""Entropy, least confidence, margin and small loss: the last visit counts."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import Entropy, LeastConfidence, Margin, SmallLoss
from lightning_prune.scoring.trackers.entropy import entropy


@pytest.mark.parametrize(
    ("tracker", "key"),
    [(Entropy, "entropy_last"), (LeastConfidence, "leastconf_maxprob"), (Margin, "dc_margin")],
)
def test_golden(golden, feed, tracker, key):
    torch.testing.assert_close(feed(tracker(60)).compute(), golden[key].float(), rtol=0, atol=2e-6)


def test_small_loss(golden, feed):
    assert torch.equal(feed(SmallLoss(60)).compute(), golden["losses"][13])
    assert torch.equal(feed(SmallLoss(60, num_epochs=5)).compute(), golden["losses"][4])


def test_directions():
    assert [cls(3).keep for cls in (Entropy, LeastConfidence, Margin, SmallLoss)] == ["high", "low", "low", "low"]


def test_entropy_of_certain_predictions():
    logits = torch.tensor([[1e4, 0.0, 0.0], [0.0, -torch.inf, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([0.0, 2.0]).clamp(max=0.6931472))
