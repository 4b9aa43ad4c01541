"""Dynamic random pruning: exact counts, uniform inclusion, and its rescaling."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_prune import RandomPruning
from lightning_prune.core.plan import num_keep
from lightning_prune.methods.random import random_subset
from tests.helpers import Model, make_loader, make_trainer


def test_inclusion_is_uniform_alone_and_in_pairs():
    """Each id is in with k/n, each pair with k(k-1)/(n(n-1)); 20,000 draws, z <= 5."""
    n, k, draws, generator = 10, 4, 20_000, torch.Generator().manual_seed(0)
    inside = torch.zeros(draws, n)
    for draw in range(draws):
        inside[draw, random_subset(n, k, generator=generator).indices] = 1
    assert bool((inside.sum(1) == k).all())
    for p, observed in ((k / n, inside.mean(0)), (k * (k - 1) / (n * (n - 1)), pairs(inside))):
        assert float((observed - p).abs().max()) <= 5 * math.sqrt(p * (1 - p) / draws)


def pairs(inside):
    joint = inside.T @ inside / len(inside)
    return joint[~torch.eye(len(joint), dtype=torch.bool)]


@pytest.mark.parametrize(
    ("n", "ratio", "k"), [(100, 0.29, 29), (50_000, 0.9, 45_000), (3, 0.1, 1), (7, 1.0, 7), (1, 0.0, 1)]
)
def test_the_rounding_rule(n, ratio, k):
    assert num_keep(n, ratio) == k


@pytest.mark.parametrize(("ratio", "kept"), [(0.3, 28), (0.5, 20), (0.0, 40), (0.99, 1)])
def test_every_epoch_keeps_the_same_number_of_other_samples(ratio, kept):
    model = Model()
    make_trainer(RandomPruning(ratio, seed=0), max_epochs=3).fit(model, make_loader())
    epochs = [model.epoch_ids(e) for e in range(3)]
    assert [len(set(ids)) for ids in epochs] == [kept] * 3
    assert (set(epochs[0]) == set(epochs[1])) == (ratio == 0)


def test_rescaling_weighs_by_n_over_k():
    class Check(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            loss = self.weighted_loss(losses)
            assert loss.item() == pytest.approx(losses.mean().item() * 40 / 28, rel=1e-5)
            return loss

    make_trainer(RandomPruning(0.3, rescale=True)).fit(Check(), make_loader())


@pytest.mark.parametrize("ratio", [1.0, -0.1, math.nan])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match=r"`prune_ratio` to be a number in \[0, 1\)"):
        RandomPruning(ratio)


@pytest.mark.parametrize("k", [0, 11])
def test_bad_subset(k):
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 10"):
        random_subset(10, k)
