"""OrderDP: exact counts, the top of the candidates, the law of inclusion, never-seen samples first."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import OrderDP
from lightning_prune.core.arrays import ids_of
from lightning_prune.core.plan import random_submask
from lightning_prune.functional import orderdp, orderdp_inclusion
from tests.helpers import Model, make_loader, make_trainer, registry_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reference_inclusion(n, s, q):
    """By enumerating every candidate set; rank 0 is the best."""
    kept = [0] * n
    for candidates in combinations(range(n), s):
        for rank in candidates[:q]:
            kept[rank] += 1
    return [Fraction(count, math.comb(n, s)) for count in kept]


SIZES = [(n, s, q) for n in range(1, 9) for s in range(1, n + 1) for q in range(1, s + 1)]


def test_inclusion_against_enumeration():
    for n, s, q in SIZES:
        exact = [float(p) for p in reference_inclusion(n, s, q)]
        assert orderdp_inclusion(n, s, q).tolist() == pytest.approx(exact, abs=1e-12), (n, s, q)


GOLDEN = [  # exact fractions
    (5, 3, 1, ["3/5", "3/10", "1/10", "0", "0"]),
    (6, 4, 2, ["2/3", "2/3", "7/15", "1/5", "0", "0"]),
    (6, 6, 3, ["1", "1", "1", "0", "0", "0"]),
    (5, 1, 1, ["1/5"] * 5),
]


@pytest.mark.parametrize(("n", "s", "q", "gamma"), GOLDEN)
def test_golden_inclusion(n, s, q, gamma):
    assert orderdp_inclusion(n, s, q).tolist() == pytest.approx([float(Fraction(p)) for p in gamma], abs=1e-15)


def exact_gamma(n, s, q, j):
    """The closed form (Eq. 3) in integers, j from 1."""
    terms = (math.comb(j - 1, l - 1) * math.comb(n - j, s - l) for l in range(1, min(q, j) + 1))  # noqa: E741
    return float(Fraction(sum(terms), math.comb(n, s)))


@pytest.mark.parametrize(("n", "s", "q"), [(300, 150, 90), (1000, 750, 600), (1000, 10, 9), (1000, 999, 1)])
def test_inclusion_against_exact_integers(n, s, q):
    gamma = orderdp_inclusion(n, s, q)
    for j in (1, q, q + 1, (q + n) // 2, n - s + q, min(n, n - s + q + 1), n):
        assert gamma[j - 1].item() == pytest.approx(exact_gamma(n, s, q, j), abs=1e-11)
    assert gamma.sum().item() == pytest.approx(q, rel=1e-12)
    assert bool((gamma[1:] <= gamma[:-1] + 1e-15).all())


def test_inclusion_of_a_million():
    gamma = orderdp_inclusion(10**6, 750_000, 600_000)
    assert gamma.sum().item() == pytest.approx(600_000, rel=1e-9)
    assert gamma[0].item() == pytest.approx(0.75, abs=1e-12)
    assert bool((gamma[1:] <= gamma[:-1]).all())


@pytest.mark.parametrize("ties", [False, True])
def test_frequencies_follow_the_law(ties):
    """n=12, s=6, q=4, 20,000 draws, z <= 5; with equal scores every sample has q/n."""
    n, s, q, draws, source = 12, 6, 4, 20_000, generator()
    scores = torch.ones(n) if ties else torch.arange(float(n), 0, -1)
    counts = torch.zeros(n)
    for _ in range(draws):
        kept = orderdp(scores, s, q, generator=source).indices
        assert len(kept) == q
        counts[kept] += 1
    p = torch.full((n,), q / n, dtype=torch.float64) if ties else orderdp_inclusion(n, s, q)
    bound = 5 * (p * (1 - p) / draws).sqrt() + 1e-12
    assert bool(((counts / draws - p).abs() <= bound).all())


floats = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=80)
@given(st.lists(floats, min_size=1, max_size=30), st.data())
def test_invariants(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    s = data.draw(st.integers(1, len(values)))
    q = data.draw(st.integers(1, s))
    seed = data.draw(st.integers(0, 99))
    kept = orderdp(scores, s, q, generator=generator(seed)).indices.tolist()
    everyone = torch.ones(len(values), dtype=torch.bool)
    candidates = set(ids_of(random_submask(everyone, s, generator(seed))).tolist())
    rank = [value if math.isfinite(value) else math.inf for value in scores.tolist()]
    assert kept == sorted(set(kept))
    assert len(kept) == q
    assert set(kept) <= candidates
    left_out = [rank[i] for i in candidates - set(kept)]
    assert not left_out or min(rank[i] for i in kept) >= max(left_out)


def test_every_epoch_keeps_exactly_q_and_stale_scores_stay():
    trainer, model = make_trainer(OrderDP(0.5, 0.6, seed=0), max_epochs=5), Model()
    trainer.fit(model, make_loader())
    assert [len(set(model.epoch_ids(e))) for e in range(5)] == [12] * 5
    registry = registry_of(trainer)
    for i, value in model.true_losses.items():  # of samples left out since, the loss of the last visit
        assert registry.losses[i].item() == pytest.approx(value, rel=1e-6)


def test_never_seen_samples_come_first():
    model = Model()
    make_trainer(OrderDP(1.0, 0.25, seed=0), max_epochs=4).fit(model, make_loader())
    assert sorted(i for e in range(4) for i in model.epoch_ids(e)) == list(range(40))


@pytest.mark.parametrize("argument", ["explore_ratio", "exploit_ratio"])
@pytest.mark.parametrize("value", [0, 1.1, -0.5, math.nan])
def test_bad_ratios(argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}` to be a number in \(0, 1\], but got"):
        OrderDP(**{argument: value})


BAD_SIZES = [(0, 1, "explore_size"), (4, 1, "explore_size"), (2, 3, "exploit_size"), (2, 0, "exploit_size")]


@pytest.mark.parametrize(("s", "q", "name"), BAD_SIZES)
def test_bad_sizes(s, q, name):
    with pytest.raises(ValueError, match=f"`{name}` to be an int"):
        orderdp(torch.rand(3), s, q)
    with pytest.raises(ValueError, match=f"`{name}` to be an int"):
        orderdp_inclusion(3, s, q)
