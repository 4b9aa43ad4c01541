"""Overlap, use, class shares, noise and score summaries, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_prune.analysis import (
    class_kept_share,
    hard_clean,
    jaccard,
    noise_ratio,
    score_summary,
    separation,
    usage_histogram,
)


def draw(seed, n, k):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k]


@pytest.mark.parametrize(("k", "m"), [(1, 1), (30, 30), (5, 40), (40, 7)])
def test_jaccard_is_that_of_sets(k, m):
    for seed in range(20):
        first, second = draw(seed, 50, k), draw(seed + 100, 50, m)
        a, b = set(first.tolist()), set(second.tolist())
        assert jaccard(first, second) == len(a & b) / len(a | b) == jaccard(second, first)


def test_jaccard_of_equal_disjoint_and_empty():
    ids = torch.tensor([2**24 + 1, 3])
    assert jaccard(ids, ids.flip(0)) == 1.0
    assert jaccard(ids, torch.tensor([2**24, 4])) == 0.0
    assert jaccard(ids, torch.tensor([], dtype=torch.int64)) == 0.0


def test_independent_uniform_draws_overlap_as_stated():
    overlaps = [jaccard(draw(seed, 1000, 600), draw(seed + 999, 1000, 600)) for seed in range(60)]
    assert np.mean(overlaps) == pytest.approx(0.6 / 1.4, abs=5 * np.std(overlaps) / math.sqrt(60))


def test_usage_histogram_counts():
    counts = torch.randint(0, 8, (500,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    histogram = usage_histogram(counts, 9)
    assert histogram.tolist() == [sum(c == k for c in counts.tolist()) for k in range(10)]


def test_class_shares():
    targets = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(1))
    kept = draw(2, 200, 90)
    shares = class_kept_share(kept, targets, 5)
    for c in range(4):
        members = [i for i, t in enumerate(targets.tolist()) if t == c]
        assert shares[c] == sum(i in set(kept.tolist()) for i in members) / len(members)
    assert shares[4].isnan()


def test_noise_ratio_is_a_mean():
    flipped = torch.rand(300, generator=torch.Generator().manual_seed(3)) < 0.3
    kept = draw(4, 300, 77)
    assert noise_ratio(kept, flipped) == pytest.approx(sum(flipped.tolist()[i] for i in kept.tolist()) / 77)


def test_score_summary_leaves_out_what_is_not_finite():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(5))
    summary = score_summary(torch.cat([scores, torch.tensor([torch.nan, torch.inf, -torch.inf])]))
    assert summary["mean"] == pytest.approx(float(scores.double().mean()))
    for p in (5, 25, 50, 75, 95):
        assert summary[f"p{p}"] == pytest.approx(float(scores.quantile(p / 100)), abs=1e-6)
    assert all(math.isnan(value) for value in score_summary(torch.tensor([torch.nan])).values())


def test_hard_clean_samples_have_the_highest_mean_losses_of_the_rightly_labelled():
    generator = torch.Generator().manual_seed(6)
    losses, flipped = torch.rand(7, 50, generator=generator), torch.rand(50, generator=generator) < 0.4
    losses[3, 5] = torch.nan
    losses[:, 8] = torch.inf
    flipped[[5, 8]] = False
    means = {i: np.mean([x for x in losses[:, i].tolist() if math.isfinite(x)]) for i in range(50) if i != 8}
    expected = sorted((i for i in means if not flipped[i]), key=means.get, reverse=True)
    assert hard_clean(losses, flipped, len(expected) + 1).tolist() == [*expected, 8]  # never seen: last
    assert hard_clean(losses, flipped, 5).tolist() == expected[:5]


def test_separation_counts_pairs():
    generator = torch.Generator().manual_seed(7)
    scores = torch.randint(10, (60,), generator=generator).float()  # many ties
    scores[3] = torch.nan
    group, other = torch.arange(60) < 20, torch.arange(60) >= 35
    pairs = [(float(a), float(b)) for a in scores[group] for b in scores[other] if not math.isnan(a)]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert separation(scores, group, other) == pytest.approx(expected, abs=1e-12)
    assert separation(scores, other, group) == pytest.approx(1 - expected, abs=1e-12)
    assert separation(torch.arange(60.0), other, group) == 1.0
    assert math.isnan(separation(scores, torch.arange(60) == 3, other))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: jaccard(torch.tensor([0.0]), torch.tensor([0])), TypeError, "`first` to be an int64 tensor"),
        (lambda: jaccard(torch.tensor([0]), torch.tensor([[0]])), ValueError, "`second` to be one-dimensional"),
        (lambda: jaccard(*[torch.tensor([], dtype=torch.int64)] * 2), ValueError, "two empty selections"),
        (lambda: usage_histogram(torch.tensor([4]), 3), ValueError, r"in \[0, 3\], by `num_epochs=3`"),
        (lambda: usage_histogram(torch.tensor([0.5]), 3), TypeError, "integer tensor"),
        (lambda: class_kept_share(torch.tensor([0]), torch.tensor([0.0])), TypeError, "`targets`"),
        (lambda: noise_ratio(torch.tensor([0]), torch.tensor([1])), TypeError, "bool tensor"),
        (lambda: noise_ratio(torch.tensor([], dtype=torch.int64), torch.tensor([True])), ValueError, "empty"),
        (lambda: score_summary(torch.tensor([1])), TypeError, "floating-point"),
        (lambda: hard_clean(torch.ones(2, 3), torch.ones(3), 1), TypeError, "`flipped` to be a bool tensor"),
        (lambda: hard_clean(torch.ones(2, 3), torch.ones(2) > 0, 1), ValueError, r"got \(2, 3\) and \(2,\)"),
        (lambda: hard_clean(torch.ones(2, 3), torch.ones(3) > 0, 1), ValueError, "`k` to be an int >= 1 and <= 0"),
        (lambda: separation(torch.ones(3), torch.ones(3), torch.ones(3) > 0), TypeError, "`group` to be a bool tensor"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
