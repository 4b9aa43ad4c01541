from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.core.plan import num_keep as one_rule
from lightning_prune.scoring import num_keep, rank_scores, select_middle, select_per_class, select_top
from lightning_prune.scoring.selectors.rank import class_budgets


def test_golden(golden):
    assert torch.equal(select_top(golden["tdds_T14_K5_a0.9_score"], 30), golden["tdds_T14_K5_a0.9_keep50"])


def test_one_rounding_rule():
    assert num_keep is one_rule


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.data())
def test_top_is_the_head_of_a_stable_order(values, data):
    k = data.draw(st.integers(1, len(values)))
    scores = torch.tensor(values).float()
    for keep, sign in (("high", -1), ("low", 1)):
        expected = sorted(sorted(range(len(values)), key=lambda i: (sign * values[i], i))[:k])
        assert select_top(scores, k, keep).tolist() == expected


def test_ties_at_random():
    scores = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    draws = {tuple(select_top(scores, 3, generator=torch.Generator().manual_seed(s)).tolist()) for s in range(60)}
    assert len(draws) == 6  # all pairs of the four tied ones
    assert all(draw[0] == 0 and 5 not in draw for draw in draws)


def test_ties_of_imagenet_size():
    scores = torch.arange(1_281_167) % 20
    assert select_top(scores.float(), 64_058).tolist()[:3] == [19, 39, 59]


@given(st.integers(1, 60), st.floats(0.01, 1.0))
def test_middle(n, ratio):
    scores = torch.randperm(n, generator=torch.Generator().manual_seed(n)).float()
    kept = select_middle(scores, ratio)
    values = scores[kept].sort().values
    assert len(kept) == num_keep(n, ratio)
    assert torch.equal(values, torch.arange(values[0], values[0] + len(kept)))
    assert abs(float(values.mean()) - (n - 1) / 2) <= 0.5


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_class_budgets(labels, data):
    k = data.draw(st.integers(1, len(labels)))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        budgets = class_budgets(torch.tensor(labels), k)
    assert sum(budgets.values()) == k
    shares = {label: k * labels.count(label) / len(labels) for label in budgets}
    enough = k >= len(budgets)
    assert bool(warned) != enough
    assert all(budgets.values()) or not enough
    for label, budget in budgets.items():
        assert budget < shares[label] + 1
        assert budget <= labels.count(label)
        if min(shares.values()) >= 1:  # else the largest classes give to those that would have none
            assert budget > shares[label] - 1
    if not enough:
        assert max(budgets.values()) == 1


def test_a_rare_class_keeps_one():
    """Of the class that has the most; others keep what the rule gives them."""
    targets = torch.tensor([0] * 90 + [1] * 3 + [2] * 2 + [3] * 105)
    assert class_budgets(targets, 20) == {0: 9, 1: 1, 2: 1, 3: 9}
    assert class_budgets(targets, 4) == {0: 1, 1: 1, 2: 1, 3: 1}
    with pytest.warns(UserWarning, match=r"3 samples are kept of 4 classes: 1 of them have none \(2\). Lower `prune"):
        assert class_budgets(targets, 3) == {0: 1, 1: 1, 2: 0, 3: 1}
    labels = torch.arange(20)
    with pytest.warns(UserWarning, match=r"18 of them have none \(2, 3, .*11, \.\.\.\)"):
        class_budgets(labels, 2)


def test_per_class():
    scores = torch.tensor([5.0, 6.0, 7.0, 8.0, 1.0, 2.0])
    targets = torch.tensor([0, 0, 0, 0, 9, 9])
    kept = select_per_class(targets, 3, lambda ids, budget: select_top(scores[ids], budget))
    assert kept.tolist() == [2, 3, 5]
    assert select_per_class(targets, 6, lambda ids, budget: select_top(scores[ids], budget)).tolist() == list(range(6))


def test_rank_scores_give_back_every_prefix():
    order = torch.tensor([4, 0, 2])
    scores = rank_scores(order, 6)
    for k in (1, 2, 3):
        assert set(select_top(scores, k).tolist()) == set(order[:k].tolist())


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_range(k):
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 3"):
        select_top(torch.zeros(3), k)
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 3"):
        class_budgets(torch.zeros(3, dtype=torch.int64), k)


def test_bad_inputs():
    with pytest.raises(ValueError, match="without NaN, but got 1 of 2: these samples were never scored"):
        select_top(torch.tensor([1.0, torch.nan]), 1)
    with pytest.raises(ValueError, match="without NaN"):
        select_middle(torch.tensor([1.0, torch.nan]), 0.5)
    with pytest.raises(ValueError, match="`keep_ratio`"):
        select_middle(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match="`keep` to be one of"):
        select_top(torch.zeros(3), 1, "most")
    with pytest.raises(TypeError, match="`scores` to be a floating-point tensor"):
        select_top(torch.zeros(3, dtype=torch.int64), 1)
