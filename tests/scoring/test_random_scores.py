"""Static random pruning: any size of it is a uniform subset, and the same one in every run of a seed."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import StaticPruning, random_scores
from tests.helpers import Model, make_loader, make_trainer


def test_every_sample_is_kept_alike():
    """Each is kept in 1/4 of the draws: within 5 standard errors of 2,000."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.stack([random_scores(40, generator=generator) >= 0.75 for _ in range(2000)]).double()
    assert bool((kept.sum(1) == 10).all())
    assert float((kept.mean(0) - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_large_orders_have_no_ties():
    assert len(torch.unique(random_scores(2_000_000, generator=torch.Generator().manual_seed(0)))) == 2_000_000


def test_a_run_keeps_one_coreset():
    model = Model()
    make_trainer(StaticPruning("random", 0.7, seed=5), max_epochs=2).fit(model, make_loader())
    expected = StaticPruning("random", 0.7, seed=5).choose(40).indices.tolist()
    assert [sorted(model.epoch_ids(epoch)) for epoch in (0, 1)] == [expected, expected]
    assert len(expected) == 12
    assert expected != StaticPruning("random", 0.7, seed=6).choose(40).indices.tolist()


def test_the_same_share_of_every_class():
    targets = torch.arange(40) % 4
    kept = StaticPruning("random", 0.5, class_balanced=True, targets=targets).choose(40).indices
    assert targets[kept].bincount().tolist() == [5, 5, 5, 5]


def test_bad_input():
    with pytest.raises(ValueError, match="`num_samples` to be an int >= 1"):
        random_scores(0)
