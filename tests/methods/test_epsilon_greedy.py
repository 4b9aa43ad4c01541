"""Epsilon-greedy: exact counts, the law of its draws, moving averages, and choices that last."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import EpsilonGreedy
from lightning_prune.functional import epsilon_greedy
from lightning_prune.methods._periodic import is_choice_epoch
from tests.cli_check import check_yaml
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.reference import periodic as reference


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.5, -1.0, math.inf, -math.inf, math.nan]), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    st.data(),
)
def test_choice_against_the_loop(scores, epsilon, data):
    k = data.draw(st.integers(1, len(scores)))
    before = torch.tensor(scores)
    values = before.clone()
    selection = epsilon_greedy(values, k, epsilon, generator=generator(k))
    kept = selection.indices.tolist()
    sure, tied, num_random = reference.choose(scores, k, epsilon)
    assert selection.weights is None
    assert kept == sorted(set(kept))
    assert len(kept) == k
    assert sure <= set(kept)
    assert len(tied & set(kept)) >= k - num_random - len(sure)
    assert torch.equal(values.nan_to_num(9.0), before.nan_to_num(9.0))


def test_law_of_the_draws():
    """A greedy sample is always in, any other with (random places) / (n - greedy); 20,000 draws, z <= 5."""
    n, k, epsilon, draws, source = 12, 6, 0.5, 20_000, generator()
    scores = torch.arange(n).float()
    counts, joint = torch.zeros(n), torch.zeros(n, n)
    for _ in range(draws):
        inside = torch.zeros(n)
        inside[epsilon_greedy(scores, k, epsilon, generator=source).indices] = 1
        counts += inside
        joint += inside[:, None] * inside
    assert bool((counts[9:] == draws).all())
    p, pair = 3 / 9, 3 * 2 / (9 * 8)
    assert float((counts[:9] / draws - p).abs().max()) <= 5 * math.sqrt(p * (1 - p) / draws)
    pairs = (joint / draws)[:9, :9][~torch.eye(9, dtype=torch.bool)]
    assert float((pairs - pair).abs().max()) <= 5 * math.sqrt(pair * (1 - pair) / draws)


@pytest.mark.parametrize("scores", [torch.full((10,), 2.302585), torch.full((10,), math.nan)], ids=["equal", "unseen"])
def test_ties_are_broken_uniformly(scores):
    draws, source = 10_000, generator(1)
    counts = torch.zeros(10)
    for _ in range(draws):
        counts[epsilon_greedy(scores, 4, 0.0, generator=source).indices] += 1
    assert float((counts / draws - 0.4).abs().max()) <= 5 * math.sqrt(0.24 / draws)


def test_permuting_ids_permutes_the_choice():
    scores = torch.rand(40, generator=generator())
    order = torch.randperm(40, generator=generator(1))
    kept = epsilon_greedy(scores, 13, 0.0).indices.tolist()
    assert sorted(order[epsilon_greedy(scores[order], 13, 0.0).indices].tolist()) == kept


def test_the_share_is_not_lost_to_rounding():
    """100 places at 0.29 are 29 random ones, although 100 * 0.29 < 29 in floating point: the 72nd best is left out."""
    kept = epsilon_greedy(torch.arange(10_000).float(), 100, 0.29, generator=generator()).indices.tolist()
    assert set(range(9929, 10_000)) <= set(kept)
    assert 9928 not in kept


@pytest.mark.parametrize(("warmup", "period"), [(0, 1), (0, 3), (2, 3), (3, 2), (0, 10), (10, 10)])
def test_choice_epochs(warmup, period):
    expected = reference.choice_epochs(30, warmup, period)
    assert [e for e in range(30) if is_choice_epoch(e, max(1, warmup), period)] == expected


class Watch(EpsilonGreedy):
    """Notes the losses and the selection of each epoch."""

    def on_fit_start(self, trainer, pl_module):
        self.epochs = []

    def on_epoch_recorded(self, registry, record):
        super().on_epoch_recorded(registry, record)
        losses = dict(zip(record.indices.tolist(), record.losses.tolist(), strict=True))
        self.epochs.append((set(registry.selection.indices.tolist()), losses))


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_fit(warmup_epochs):
    """28 of 40 samples from the second epoch on; averages as the loop has them; choices that last three epochs."""
    method = Watch(0.3, 0.25, every_n_epochs=3, smoothing=0.4, seed=0, warmup_epochs=warmup_epochs)
    trainer, model = make_trainer(method, max_epochs=9), Model()
    trainer.fit(model, make_loader())
    first = max(1, warmup_epochs)
    assert [len(kept) for kept, _ in method.epochs] == [40] * first + [28] * (9 - first)
    histories = [[losses[i] for _, losses in method.epochs if i in losses] for i in range(40)]
    means = [reference.average(history, 0.4)[0] for history in histories]
    assert registry_of(trainer).column("epsilon_greedy_mean").tolist() == pytest.approx(means, rel=1e-5)
    for epoch in range(first + 1, 9):
        same = method.epochs[epoch][0] == method.epochs[epoch - 1][0]
        assert same == (epoch not in reference.choice_epochs(9, warmup_epochs, 3))
    greedy = [reference.average([losses[i] for _, losses in method.epochs[:first]], 0.4)[0] for i in range(40)]
    best = sorted(range(40), key=lambda i: -greedy[i])[:21]
    assert set(best) <= method.epochs[first][0]
    assert [sorted(set(model.epoch_ids(e))) for e in range(9)] == [sorted(kept) for kept, _ in method.epochs]


def test_samples_without_a_loss_come_first():
    """Each epoch trains 5 of its batches: of the 20 never trained, none is missing in the first choice."""
    method = Watch(0.3, 0.0, every_n_epochs=1, seed=0)
    make_trainer(method, max_epochs=2, limit_train_batches=5).fit(Model(), make_loader())
    seen = set(method.epochs[0][1])
    assert len(seen) == 20
    assert set(range(40)) - seen <= method.epochs[1][0]


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
def test_a_loss_that_is_not_finite_keeps_the_sample():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            self.weighted_loss(losses.where(batch[2] != 7, math.nan))
            return self.weighted_loss(losses, record=False)

    method = Watch(0.5, 0.0, every_n_epochs=1, seed=0)
    trainer = make_trainer(method, max_epochs=4)
    trainer.fit(Broken(), make_loader())
    assert all(7 in kept for kept, _ in method.epochs)
    assert math.isnan(registry_of(trainer).column("epsilon_greedy_mean")[7])
    assert bool(registry_of(trainer).column("epsilon_greedy_mean")[:7].isfinite().all())


def test_yaml(monkeypatch, tmp_path):
    check_yaml(monkeypatch, tmp_path, "EpsilonGreedy", {"prune_ratio": 0.5, "epsilon": 0.2, "every_n_epochs": 2})


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_datasets(n):
    model = Model()
    make_trainer(EpsilonGreedy(0.9, seed=0), max_epochs=3).fit(model, make_loader(n, batch_size=1))
    assert model.epoch_batches(3) == [n, 1, 1]


def test_ratio_zero_keeps_everything():
    model = Model()
    trainer = make_trainer(EpsilonGreedy(0.0, seed=0), max_epochs=3)
    trainer.fit(model, make_loader())
    assert model.epoch_batches(3) == [10] * 3
    assert registry_of(trainer).selection.weights is None


BAD = [
    ({"prune_ratio": 1.0}, r"`prune_ratio` to be a number in \[0, 1\), but got 1.0"),
    ({"epsilon": 1.1}, r"`epsilon` to be a number in \[0, 1\], but got 1.1"),
    ({"epsilon": math.nan}, r"`epsilon` to be a number in \[0, 1\], but got nan"),
    ({"every_n_epochs": 0}, "`every_n_epochs` to be an int >= 1, but got 0"),
    ({"smoothing": 0.0}, r"`smoothing` to be a number in \(0, 1\], but got 0.0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpsilonGreedy(**arguments)


def test_bad_rule_input():
    with pytest.raises(ValueError, match="`num_keep` to be an int >= 1 and <= 3, but got 4"):
        epsilon_greedy(torch.rand(3), 4, 0.1)
    with pytest.raises(ValueError, match=r"`epsilon` to be a number in \[0, 1\]"):
        epsilon_greedy(torch.rand(3), 2, -0.1)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        epsilon_greedy(torch.rand(2, 2), 2, 0.1)
    with pytest.raises(TypeError, match="floating-point tensor"):
        epsilon_greedy(torch.arange(3), 2, 0.1)
