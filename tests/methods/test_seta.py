"""SeTa: exact grouping, the published window, a uniform random share, partial annealing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import SeTa
from lightning_prune.functional import kmeans_1d, seta
from tests.helpers import Model, make_loader, make_trainer
from tests.reference.golden import GOLDEN
from tests.reference.seta import best_inertia, inertia, window


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def groups_of(ids):
    return [[i for i, group in enumerate(ids.tolist()) if group == g] for g in range(int(ids.max()) + 1)]


@pytest.mark.parametrize("case", GOLDEN["seta_kmeans"]["cases"], ids=lambda case: case["name"])
def test_golden_groups(case):
    groups = groups_of(kmeans_1d(torch.tensor(case["scores"]), case["k"]))
    assert inertia(case["scores"], groups) == pytest.approx(case["inertia_optimal_1d"], rel=1e-5)
    if case["name"].startswith("separated"):
        assert groups == case["groups_easy_to_hard"]


@pytest.mark.parametrize("case", GOLDEN["seta_window"]["cases"], ids=lambda case: f"{case['k']}-{case['alpha']}")
def test_golden_windows(case):
    scores = torch.arange(case["k"]).double() * 10
    for epoch, expected in case["selected_groups_by_iteration"].items():
        assert seta(scores, int(epoch), 0.0, case["k"], case["alpha"]).indices.tolist() == expected
        assert window(int(epoch), case["k"], case["alpha"]) == expected


@pytest.mark.parametrize("scale", [0.9, 0.6])
def test_golden_epochs(scale):
    golden = GOLDEN["seta_epoch_sets"]
    for epoch, expected in golden[f"alpha_{scale}".replace(".", "_")].items():
        assert seta(torch.tensor(golden["scores"]), int(epoch), 0.0, 5, scale).indices.tolist() == expected


@settings(max_examples=60)
@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=9), st.integers(1, 5), st.randoms())
def test_grouping_is_optimal_and_ignores_the_order(values, k, random):
    ids = kmeans_1d(torch.tensor(values), k)
    groups = groups_of(ids)
    assert len(groups) == min(k, len(set(values)))
    assert inertia(values, groups) == pytest.approx(best_inertia(values, k), abs=1e-6)
    means = [sum(values[i] for i in group) / len(group) for group in groups]
    assert means == sorted(means)
    order = list(range(len(values)))
    random.shuffle(order)
    assert kmeans_1d(torch.tensor(values)[order], k).tolist() == ids[order].tolist()


DISTRIBUTIONS = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(sigma=1.5, size=n),
    "offset": lambda rng, n: 1000 + rng.normal(size=n),
    "outliers": lambda rng, n: np.concatenate([rng.normal(size=n - 5), np.linspace(1e4, 2e4, 5)]),
    "ties": lambda rng, n: rng.integers(0, 12, size=n) ** 2,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_large_grouping_is_within_one_percent_of_the_optimum(name):
    """Against the exact optimum over all cuts of 3,000 values, by dynamic programming in NumPy."""
    values = DISTRIBUTIONS[name](np.random.default_rng(0), 3000).astype(np.float32)
    ids = kmeans_1d(torch.from_numpy(values), 5)
    ours = sum(
        float(((values[ids == g].astype(float) - values[ids == g].mean(dtype=float)) ** 2).sum()) for g in range(5)
    )
    x = np.sort(values).astype(float)
    x -= x.mean()
    s1, s2 = np.r_[0, x.cumsum()], np.r_[0, (x**2).cumsum()]
    count = np.arange(3001)
    with np.errstate(all="ignore"):
        size = count[None] - count[:, None]
        cost = (s2[None] - s2[:, None]) - (s1[None] - s1[:, None]) ** 2 / size
    cost[size <= 0] = np.inf
    best = cost[0]
    for _ in range(4):
        best = (best[:, None] + cost).min(0)
    assert ours <= best[-1] * 1.01 + 1e-6


def test_random_share_is_uniform_and_the_rest_deterministic():
    """Each id passes with 1 - r (epoch 0 keeps all groups); 4,000 draws, z <= 5."""
    n, ratio, draws, source = 50, 0.3, 4000, generator()
    counts = torch.zeros(n)
    for _ in range(draws):
        kept = seta(torch.rand(n, generator=source), 0, ratio, 5, 0.9, generator=source).indices
        assert len(kept) == 35
        counts[kept] += 1
    assert float((counts / draws - 0.7).abs().max()) <= 5 * math.sqrt(0.21 / draws)
    scores = torch.rand(n, generator=source)
    assert torch.equal(seta(scores, 1, 0.0, 5, 0.6).indices, seta(scores, 1, 0.0, 5, 0.6).indices)


@settings(max_examples=60)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=30),
    st.integers(0, 6),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(1, 8),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_invariants(values, epoch, ratio, k, scale):
    scores = torch.tensor(values)
    before = scores.clone()
    kept = seta(scores, epoch, ratio, k, scale, generator=generator(epoch)).indices.tolist()
    assert scores.equal(before) or bool(before.isnan().any())
    assert kept == sorted(set(kept))
    assert 1 <= len(kept) <= max(1, math.floor(len(values) * (1 - ratio) + 1e-6))
    if ratio == 0:
        assert {i for i, value in enumerate(values) if not math.isfinite(value)} <= set(kept)


def test_permuting_ids_permutes_the_selection():
    scores = torch.rand(40, generator=generator())
    order = torch.randperm(40, generator=generator(1))
    kept = seta(scores, 2, 0.0, 5, 0.6).indices
    assert sorted(order[seta(scores[order], 2, 0.0, 5, 0.6).indices].tolist()) == kept.tolist()


def test_fewer_distinct_scores_than_groups():
    """Two groups: a window of round(2 * 0.6) = 1, so each half in turn."""
    scores = torch.tensor([1.0] * 10 + [2.0] * 10)
    assert seta(scores, 1, 0.0, 5, 0.6).indices.tolist() == list(range(10, 20))
    assert seta(scores, 2, 0.0, 5, 0.6).indices.tolist() == list(range(10))


def test_equal_scores_make_random_groups():
    scores = torch.full((20,), 2.302585)
    draws = [seta(scores, 1, 0.0, 5, 0.6, generator=generator(seed)).indices.tolist() for seed in range(2)]
    assert [len(kept) for kept in draws] == [12, 12]
    assert draws[0] != draws[1]


def test_infinite_losses_do_not_group():
    scores = torch.tensor([math.inf, 1.0, 1.1, 5.0, 5.1, math.nan, -math.inf])
    assert seta(scores, 1, 0.0, 2, 0.5).indices.tolist() == [0, 3, 4, 5, 6]
    assert seta(scores, 2, 0.0, 2, 0.5).indices.tolist() == [0, 1, 2, 5, 6]


@pytest.mark.parametrize("case", GOLDEN["seta_anneal"]["cases"], ids=lambda case: str(case["E"]))
def test_golden_annealing_lengths(case):
    """Scores 0..39 after the first epoch, k=5, alpha=0.6: the first, and the annealing epochs are a random 36 of 40."""
    model = Model()
    make_trainer(SeTa(0.1, 5, 0.6, case["delta"], seed=0), max_epochs=case["E"]).fit(model, make_loader())
    lengths = [len(set(model.epoch_ids(e))) for e in range(case["E"])]
    full = [e for e, length in enumerate(case["lens"]) if length == 36]
    assert [e for e, length in enumerate(lengths) if length == 36] == full
    assert max(length for e, length in enumerate(lengths) if e not in full) < 36


def test_the_window_starts_to_slide_after_warmup():
    class Watch(SeTa):
        seen: list[list[int]] = []

        def select(self, registry, epoch, generator):
            selection = super().select(registry, epoch, generator)
            same = seta(registry.scores, epoch - 2, 0.0, 3, 0.6)
            assert torch.equal(selection.indices, same.indices)
            self.seen.append(selection.indices.tolist())
            return selection

    make_trainer(Watch(0.0, 3, 0.6, 1.0, warmup_epochs=2), max_epochs=5).fit(Model(), make_loader())
    assert len(Watch.seen[0]) == 40
    assert len(Watch.seen) == 3
    assert set(Watch.seen[1]) | set(Watch.seen[2]) != set(Watch.seen[1])


BAD = [
    ({"prune_ratio": 1.0}, r"`prune_ratio` to be a number in \[0, 1\), but got 1.0"),
    ({"num_groups": 0}, "`num_groups` to be an int >= 1, but got 0"),
    ({"window_scale": 0.0}, r"`window_scale` to be a number in \(0, 1\], but got 0.0"),
    ({"anneal_ratio": 1.5}, r"`anneal_ratio` to be a number in \[0, 1\], but got 1.5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeTa(**arguments)


def test_bad_rule_input():
    with pytest.raises(ValueError, match="`epoch` to be an int >= 0"):
        seta(torch.rand(3), -1, 0.1, 5, 0.9)
    with pytest.raises(ValueError, match="`values` to be finite"):
        kmeans_1d(torch.tensor([1.0, math.nan]), 2)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        kmeans_1d(torch.rand(2, 2), 2)
