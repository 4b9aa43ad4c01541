"""`Pruner.weighted_loss` means what the mixin's does."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Pruner, WeightedLossMixin
from lightning_prune.core import step
from tests.helpers import Keep


def test_every_way_in_takes_the_same_arguments():
    ways = (step.weighted_loss, WeightedLossMixin.weighted_loss, Pruner.weighted_loss)
    core, mixin, loop = ([p.replace(annotation=None) for p in signature(way).parameters.values()][1:] for way in ways)
    assert core == loop == mixin[:-1]
    assert mixin[-1].name == "loader"  # of several, which a loop has not got
    assert [p.name for p in core if p.kind is not p.KEYWORD_ONLY] == ["losses"]


@pytest.mark.parametrize("method", [lambda: Keep(1.0, 0.5), lambda: Keep(1.0, 0.5, weight=2.0)], ids=["1", "2"])
def test_losses_of_every_kind(method):
    """Class weights, tokens, crops, a mapping, in a loop: each has the value of the formula; p is the same for all."""
    weight = torch.tensor([0.2, 5.0, 1.0])
    pruner = Pruner(method(), max_epochs=2, seed=0)
    ids = torch.arange(12)
    loader = pruner.attach(DataLoader(TensorDataset(ids), 4, shuffle=True))
    for _ in pruner.epochs():
        for (i,) in loader:
            losses = torch.stack([i + 1.0, 2.0 * i], 1)
            mask = torch.stack([i >= 0, i % 2 == 0], 1)
            p = torch.full((len(i),), 1.0 if pruner.selection.weights is None else 2.0)
            mean = (losses * mask).sum(1) / mask.sum(1)
            w = weight[i % 3]
            tokens = pruner.weighted_loss(losses, mask=mask, normalize="token", record=False)
            assert tokens.item() == pytest.approx(((p[:, None] * losses * mask).sum() / mask.sum()).item())
            weighted = pruner.weighted_loss(losses, mask=mask, sample_weight=w, record=False)
            assert weighted.item() == pytest.approx((p * w * mean).sum().item() / w.sum().item())
            parts = pruner.weighted_loss({"a": losses, "b": mean}, record=False)
            assert parts.item() == pytest.approx((p * (losses.mean(1) + mean)).mean().item())
            crops = pruner.weighted_loss(losses.flatten(), indices=i.repeat_interleave(2))
            assert crops.item() == pytest.approx((p * losses.mean(1)).mean().item())
    assert torch.equal(pruner.registry.losses, (3.0 * ids + 1) / 2)
