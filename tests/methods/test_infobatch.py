"""InfoBatch: its threshold, its counts, its weights, its unbiasedness, and when it anneals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import InfoBatch, ScoreRegistry
from lightning_prune.functional import adjusted_epochs, infobatch
from lightning_prune.methods._shared import num_pruning_epochs
from tests.helpers import Model, make_loader, make_trainer, registry_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reference_low(scores):
    """The ids strictly below the mean of the finite scores, by a plain loop in double precision."""
    finite = [s for s in scores if math.isfinite(s)]
    mean = math.fsum(finite) / len(finite) if finite else math.nan
    return {i for i, s in enumerate(scores) if math.isfinite(s) and s < mean}


GOLDEN = [  # scores, ratio, below the mean: made by running the published code
    ([0.1, 0.2, 0.3, 0.4, 5.0], 0.5, {0, 1, 2, 3}),
    ([1.0, 1.0, 1.0, 1.0], 0.5, set()),
    ([0.0, 0.0, 0.0, 10.0], 0.25, {0, 1, 2}),
    ([0.5, 0.5, 2.0, 2.0, 0.1, 0.9, 3.3, 0.2, 0.05, 1.2], 0.95, {0, 1, 4, 5, 7, 8}),
]


@pytest.mark.parametrize(("scores", "ratio", "low"), GOLDEN)
@pytest.mark.parametrize("mode", ["exact", "bernoulli"])
def test_golden_threshold_and_weights(scores, ratio, low, mode):
    for seed in range(20):
        kept = infobatch(torch.tensor(scores), ratio, mode=mode, generator=generator(seed))
        ids = kept.indices.tolist()
        assert set(range(len(scores))) - low <= set(ids)
        for i, weight in zip(ids, kept.weights.tolist(), strict=True):
            assert weight == pytest.approx(1 / (1 - ratio) if i in low else 1.0)
        if mode == "exact":
            expected = (1 - ratio) * len(low)
            assert len(ids) - (len(scores) - len(low)) in {math.floor(expected), math.ceil(expected)}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("mode", ["exact", "bernoulli"])
def test_expected_weight_of_every_sample_is_one(ratio, mode):
    """E[w_i 1_kept] = 1 for every i, and so for any gradients g: E[sum w g] = sum g; 2,000 draws, z <= 5."""
    rng = np.random.default_rng(0)
    n, draws, keep = 1000, 2000, 1 - ratio
    scores = torch.tensor(rng.lognormal(size=n), dtype=torch.float32)
    g = torch.tensor(rng.normal(size=n))
    low = torch.zeros(n, dtype=torch.bool)
    low[list(reference_low(scores.tolist()))] = True
    num_low = int(low.sum())
    source, total, sums, projected = generator(1), torch.zeros(n), [], []
    for _ in range(draws):
        kept = infobatch(scores, ratio, mode=mode, generator=source)
        total[kept.indices] += kept.weights
        sums.append(float(kept.weights.double().sum()))
        projected.append(float((kept.weights.double() * g[kept.indices]).sum()))
    mean = total / draws
    assert torch.equal(mean[~low], torch.ones(n - num_low))
    bound = 5 * math.sqrt((1 - keep) / keep / draws)
    assert float((mean[low] - 1).abs().max()) <= bound
    fraction = keep * num_low % 1
    variance = fraction * (1 - fraction) / keep**2 if mode == "exact" else num_low * (1 - keep) / keep
    assert abs(np.mean(sums) - n) <= 5 * math.sqrt(variance / draws) + 1e-3
    spread = float(g[low].square().sum()) * (1 - keep) / keep
    assert abs(np.mean(projected) - float(g.sum())) <= 5 * math.sqrt(spread / draws)


def test_exact_count_varies_by_at_most_one():
    scores = torch.rand(101, generator=generator(2))
    counts = {len(infobatch(scores, 0.35, generator=generator(s))) for s in range(200)}
    assert len(counts) == 2
    assert max(counts) - min(counts) == 1


def test_single_low_sample_is_kept_half_the_time():
    """The published truncation never keeps it."""
    scores = torch.tensor([0.0, 5.0])
    kept = sum(len(infobatch(scores, 0.5, generator=generator(s))) == 2 for s in range(400))
    assert abs(kept - 200) <= 5 * 10


@pytest.mark.parametrize("value", [2.302585, 0.1, 4.60517])
def test_equal_losses_prune_nothing(value):
    kept = infobatch(torch.full((50_000,), value), 0.5)
    assert len(kept) == 50_000
    assert bool((kept.weights == 1).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_kept_with_weight_one(bad):
    scores = torch.tensor([0.1, bad, 0.2, 0.3, 5.0, bad])
    for seed in range(10):
        kept = infobatch(scores, 0.5, generator=generator(seed))
        weights = dict(zip(kept.indices.tolist(), kept.weights.tolist(), strict=True))
        assert weights[1] == weights[5] == weights[4] == 1.0
        assert len(kept) == 3 + 1 + (1 if len(kept) == 5 else 0)
        assert {weights[i] for i in weights if i in {0, 2, 3}} <= {2.0}


@pytest.mark.parametrize("scores", [[math.nan] * 5, [1.0], [math.nan], [math.inf, 1.0]], ids=str)
def test_nothing_to_compare_keeps_everything(scores):
    assert infobatch(torch.tensor(scores), 0.5).indices.tolist() == list(range(len(scores)))


floats = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=80)
@given(st.lists(floats, min_size=1, max_size=40), st.floats(0, 0.99), st.integers(0, 99))
def test_invariants(scores, ratio, seed):
    tensor = torch.tensor(scores, dtype=torch.float32)
    before = tensor.clone()
    kept = infobatch(tensor, ratio, generator=generator(seed))
    low = reference_low(tensor.tolist())
    ids = kept.indices.tolist()
    assert torch.equal(tensor.nan_to_num(), before.nan_to_num())
    assert ids == sorted(set(ids))
    assert set(range(len(scores))) - low <= set(ids) <= set(range(len(scores)))
    assert bool(kept.weights.isfinite().all())
    assert bool((kept.weights >= 1).all())
    again = infobatch(tensor, ratio, generator=generator(seed))
    assert torch.equal(kept.indices, again.indices)


def test_ratio_zero_is_the_identity():
    kept = infobatch(torch.rand(100, generator=generator(3)), 0.0)
    assert kept.indices.tolist() == list(range(100))
    assert bool((kept.weights == 1).all())


def test_a_generator_of_its_own_is_fresh():
    scores = torch.arange(1000.0)
    assert not torch.equal(infobatch(scores, 0.5).indices, infobatch(scores, 0.5).indices)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"prune_ratio": 1.0}, ValueError, r"`prune_ratio` to be a number in \[0, 1\), but got 1.0"),
        ({"prune_ratio": -0.1}, ValueError, "`prune_ratio`"),
        ({"prune_ratio": math.nan}, ValueError, "`prune_ratio`"),
        ({"prune_ratio": "half"}, TypeError, "`prune_ratio` to be a number"),
        ({"mode": "often"}, ValueError, r"`mode` to be one of \['exact', 'bernoulli'\], but got 'often'"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        InfoBatch(**kwargs)
    with pytest.raises(error, match=match):
        infobatch(torch.rand(3), **{"prune_ratio": 0.5, **kwargs})


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_bad_anneal_ratio(ratio):
    with pytest.raises(ValueError, match=r"`anneal_ratio` to be a number in \[0, 1\]"):
        InfoBatch(anneal_ratio=ratio)


@pytest.mark.parametrize(
    ("scores", "error"),
    [(torch.tensor([1, 2]), TypeError), (torch.rand(2, 2), ValueError), (torch.rand(0), ValueError)],
)
def test_bad_scores(scores, error):
    with pytest.raises(error, match="`scores`"):
        infobatch(scores, 0.5)


ANNEALING = [
    (8, 0.875, 7),
    (90, 0.875, 78),
    (200, 0.875, 175),
    (100, 0.875, 87),
    (10, 0.875, 8),
    (10, 0, 0),
    (10, 1, 10),
]


@pytest.mark.parametrize(("epochs", "ratio", "first_full"), ANNEALING)
def test_annealing_table(epochs, ratio, first_full):
    assert num_pruning_epochs(epochs, ratio) == first_full
    assert all((e + 1 <= epochs * ratio + 1e-9) == (e < first_full) for e in range(epochs))


@pytest.mark.parametrize("max_epochs", [10, 8, 3])
def test_annealing_epochs_are_full_and_unweighted(max_epochs):
    weights = {}

    class Watch(InfoBatch):
        def select(self, registry, epoch, generator):
            selection = super().select(registry, epoch, generator)
            weights[epoch] = (1.0 if selection.weights is None else selection.weights.max().item()), len(selection)
            return selection

    model = Model()
    make_trainer(Watch(), max_epochs=max_epochs).fit(model, make_loader())
    first_full = num_pruning_epochs(max_epochs, 0.875)
    for epoch in range(max_epochs):
        full = epoch == 0 or epoch >= first_full
        assert weights[epoch] == ((1.0, 40) if full else (2.0, len(model.epoch_ids(epoch))))
        assert (len(model.epoch_ids(epoch)) == 40) == full


def test_annealing_by_steps_under_max_steps():
    """Without a number of epochs, the last eighth of the steps is full."""
    model = Model()
    make_trainer(InfoBatch(), max_epochs=-1, max_steps=100).fit(model, make_loader())
    starts = [model.seen.index(next(s for s in model.seen if s[0] == e)) for e in range(model.current_epoch)]
    for epoch, start in enumerate(starts[:-1]):
        assert (len(model.epoch_ids(epoch)) == 40) == (epoch == 0 or start >= 87.5)


def test_what_is_trained_is_what_the_rule_keeps():
    trainer, model = make_trainer(InfoBatch(), max_epochs=6), Model()
    trainer.fit(model, make_loader())
    counts = registry_of(trainer).counts
    for index in range(40):
        assert counts[index] == sum(index in ids for _, ids in model.seen)


def test_adjusted_epochs_train_as_much_as_asked():
    """A pilot run says what is saved; the run trains within a tenth of what was asked (longer ones save some more)."""

    def trained(epochs):
        registry = ScoreRegistry()
        make_trainer(registry, InfoBatch(0.7, anneal_ratio=1.0, seed=0), max_epochs=epochs).fit(Model(), make_loader())
        return int(registry.counts.sum()), registry.saved_fraction

    _, saved = trained(12)
    assert 0.1 < saved < 0.7
    for target in (0.1, 0.6):
        epochs = adjusted_epochs(12, saved=saved, target=target)
        assert (epochs > 12) == (saved > target)
        assert trained(epochs)[0] == pytest.approx(12 * 40 * (1 - target), rel=0.1)


@pytest.mark.parametrize("kwargs", [{"max_epochs": 0}, {"saved": 1.0}, {"target": -0.1}])
def test_adjusted_epochs_refuses(kwargs):
    with pytest.raises(ValueError, match=f"Expected `{next(iter(kwargs))}`"):
        adjusted_epochs(**{"max_epochs": 10, "saved": 0.3, "target": 0.5, **kwargs})
