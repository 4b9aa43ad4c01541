"""RS2: exact counts, equal use, the rounds of the plain loop, and a law without favourites."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import RS2
from lightning_prune.core.rng import make_generator, permutation
from lightning_prune.methods.rs2 import rs2_subset
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.reference import rs2 as reference
from tests.reference.golden import GOLDEN
from tests.resume_check import check_resume

SIZES = [(n, k) for n in range(1, 14) for k in range(1, n + 1)]


def kept(n, k, rounds, seed=0):
    return [rs2_subset(n, k, r, seed).indices.tolist() for r in range(rounds)]


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_count_and_equal_use(seed):
    """Every round has exactly k ids, ascending, and after each no two samples differ by more than one in use."""
    for n, k in SIZES:
        use = [0] * n
        for ids in kept(n, k, 30, seed):
            assert ids == sorted(set(ids)), (n, k)
            assert len(ids) == k, (n, k)
            for i in ids:
                use[i] += 1
            assert max(use) - min(use) <= 1, (n, k)


def test_rounds_against_the_loop():
    for n, k in SIZES:
        size, rounds = min(k, n - k), 25
        if size:
            passes = [permutation(n, make_generator(3, p, "rs2")).tolist() for p in range(rounds * size // n + 2)]
            expected = reference.rounds(n, size, passes, rounds)
            if size != k:  # the blocks are what is left out
                expected = [set(range(n)) - left_out for left_out in expected]
            assert [set(ids) for ids in kept(n, k, rounds, 3)] == expected, (n, k)


@pytest.mark.parametrize(("n", "k"), [(12, 3), (12, 6), (100, 10), (12, 8), (12, 9)])
def test_each_sample_once_a_pass(n, k):
    """With k | n, one of n / k rounds; with (n - k) | n, all but one of n / (n - k) rounds."""
    per_pass = n // min(k, n - k)
    for first in (0, per_pass, 7 * per_pass):
        ids = itertools.chain(*(rs2_subset(n, k, r, 5).indices.tolist() for r in range(first, first + per_pass)))
        assert sorted(ids) == sorted(list(range(n)) * (1 if 2 * k <= n else per_pass - 1))


@pytest.mark.parametrize("case", GOLDEN["rs2_sizes"]["cases"], ids=str)
def test_the_round_that_wraps_is_not_short(case):
    n, k, published = case["n"], case["size"], case["sizes"]
    assert reference.published_sizes(n, k, len(published)) == published
    assert [len(ids) for ids in kept(n, k, len(published))] == [k] * len(published)


def test_blocks_are_uniform_alone_and_in_pairs():
    """In the second round, which wraps: each id with k/n, each pair of ids with one probability; z <= 5."""
    n, k, draws = 5, 2, 20_000
    inside = torch.zeros(draws, n)
    for seed in range(draws):
        inside[seed, rs2_subset(n, k, 2, seed).indices] = 1
    joint = (inside.T @ inside / draws)[~torch.eye(n, dtype=torch.bool)]
    for p, observed in ((k / n, inside.mean(0)), (k * (k - 1) / (n * (n - 1)), joint)):
        assert float((observed - p).abs().max()) <= 5 * math.sqrt(p * (1 - p) / draws)


@settings(max_examples=60)
@given(st.integers(1, 60), st.data())
def test_far_rounds_need_no_earlier_ones(n, data):
    k = data.draw(st.integers(1, n))
    first = data.draw(st.integers(0, 10_000))
    assert len(rs2_subset(n, k, first, 0)) == k
    use = torch.zeros(n, dtype=torch.int64)
    window = n // math.gcd(n, k)  # rounds in which everything is used equally often, if they start with a pass
    for r in range(first * window, (first + 1) * window):
        use[rs2_subset(n, k, r, 0).indices] += 1
    assert use.tolist() == [k * window // n] * n


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_fit(warmup_epochs):
    """16 of 40 samples: 5 epochs are two passes."""
    trainer, model = make_trainer(RS2(0.6, seed=0, warmup_epochs=warmup_epochs), max_epochs=5 + warmup_epochs), Model()
    trainer.fit(model, make_loader())
    epochs = [model.epoch_ids(e) for e in range(5 + warmup_epochs)]
    assert [len(set(ids)) for ids in epochs] == [40] * warmup_epochs + [16] * 5
    assert registry_of(trainer).counts.tolist() == [2 + warmup_epochs] * 40
    assert sorted(epochs[warmup_epochs]) == rs2_subset(40, 16, 0, 0).indices.tolist()


def test_the_global_seed_is_the_default(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    model = Model()
    make_trainer(RS2(0.5), max_epochs=1).fit(model, make_loader())
    assert sorted(model.epoch_ids(0)) == rs2_subset(40, 20, 0, 7).indices.tolist()


@pytest.mark.parametrize("replacement", [False, True])
def test_resume(replacement, tmp_path, monkeypatch):
    seeds = iter("789")

    def make():
        monkeypatch.setenv("PL_GLOBAL_SEED", next(seeds))  # a resumed run keeps the seed that it was started with
        return RS2(0.45, replacement)

    check_resume(make, tmp_path)


def test_with_replacement_epochs_are_independent():
    trainer, model = make_trainer(RS2(0.5, replacement=True, seed=0), max_epochs=6), Model()
    trainer.fit(model, make_loader())
    assert [len(set(model.epoch_ids(e))) for e in range(6)] == [20] * 6
    counts = registry_of(trainer).counts
    assert int(counts.max() - counts.min()) > 1


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_tiny_datasets(n, replacement):
    model = Model()
    make_trainer(RS2(0.7, replacement, seed=0), max_epochs=3).fit(model, make_loader(n, batch_size=1))
    assert model.epoch_batches(3) == [1] * 3


def test_ratio_zero_keeps_everything():
    selection = rs2_subset(40, 40, 9, 0)
    assert selection.weights is None
    assert selection.indices.tolist() == list(range(40))
    model = Model()
    make_trainer(RS2(0.0, seed=0), max_epochs=2).fit(model, make_loader())
    assert model.epoch_batches(2) == [10, 10]


@pytest.mark.parametrize("ratio", [1.0, -0.1, math.nan])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match=r"`prune_ratio` to be a number in \[0, 1\)"):
        RS2(ratio)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1, 0), "`num_samples`"), ((3, 0, 0), "`k`"), ((3, 4, 0), "`k`"), ((3, 1, -1), "`round_index`")],
)
def test_bad_rule_input(arguments, message):
    with pytest.raises(ValueError, match=f"{message} to be an int"):
        rs2_subset(*arguments, seed=0)
