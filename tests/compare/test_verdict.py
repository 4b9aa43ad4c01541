"""Verdicts: the intervals are those of the textbook, and the error of the whole procedure stays below what it says."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy import stats

from lightning_prune.compare.verdict import check_installed, interval, judge, looks, looks_until, next_look

MARGIN = 0.5


def test_the_looks_share_the_whole_error_and_no_more():
    shares, last = [], 0
    for pairs, share in looks():
        assert pairs > last
        last = pairs
        shares.append(share)
        if pairs > 10**6:
            break
    assert 0.9999 < sum(shares) < 1
    assert [next_look(n) for n in (0, 2, 3, 5, 19, 20)] == [3, 3, 5, 10, 20, 40]
    assert [pairs for pairs, _ in looks_until(2)] == []


@pytest.mark.parametrize("n", [3, 5, 10])
def test_interval_is_student_s(n):
    values = np.random.default_rng(n).normal(1, 2, n)
    expected = stats.t.interval(0.99, n - 1, values.mean(), stats.sem(values))
    assert interval(values.tolist(), 0.01) == pytest.approx(expected, rel=1e-9)


def test_rows_and_looks_share_the_error():
    values = np.random.default_rng(0).normal(0, 1, 3)
    expected = stats.t.interval(1 - 0.05 / 4 / 6, 2, values.mean(), stats.sem(values))
    verdict = judge(values.tolist(), MARGIN, num_rows=6)
    assert (verdict.low, verdict.high) == pytest.approx(expected, rel=1e-9)


def test_a_row_s_interval_is_what_its_looks_have_in_common():
    values = [*np.random.default_rng(1).normal(0, 0.1, 3), *np.random.default_rng(2).normal(0, 3, 2)]
    first, second = judge(values[:3], MARGIN), judge(values, MARGIN)
    assert second.low == first.low
    assert second.high == first.high
    assert second.num_pairs == 5
    assert second.difference == pytest.approx(np.mean(values))
    later = judge([*values, 50.0, -50.0], MARGIN)  # between two looks
    assert (later.num_pairs, later.low, later.high) == (5, second.low, second.high)


@pytest.mark.parametrize("values", [[], [9.0], [9.0, 9.1]])
def test_fewer_than_three_seeds_are_never_a_verdict(values):
    verdict = judge(values, 0.1)
    assert verdict.outcome == "cannot tell"
    assert verdict.more_seeds == 3 - len(values)
    assert math.isinf(verdict.low)


def test_equal_differences_are_no_certainty():
    verdict = judge([0.0] * 5, 0.5)
    assert (verdict.outcome, verdict.more_seeds) == ("cannot tell", 5)
    almost = [1 / 360 + noise for noise in (0.0, 3e-8, -3e-8)]  # of float32
    assert judge(almost, 0.005).outcome == "cannot tell"


def test_outcomes():
    assert judge([0.01, -0.01, 0.0], MARGIN).outcome == "no worse"
    assert judge([-9.0, -9.1, -8.9], MARGIN).outcome == "worse"
    assert judge([-0.2, -0.21, -0.19], MARGIN).outcome == "no worse"  # worse, but by less than what matters
    wide = judge([1.0, -1.0, 0.0], MARGIN)
    assert wide.outcome == "cannot tell"
    assert wide.more_seeds == 37  # at 40 pairs the half-width is 0.49
    assert judge([100.0, -100.0, 0.0], 0.001).more_seeds is None


def simulate(mean, deviation, rows, max_seeds, repeats, seed):
    """Return how often a comparison of so many rows gives each outcome, adding seeds until all rows are decided."""
    rng = np.random.default_rng(seed)
    found = {"no worse": 0, "worse": 0, "all decided": 0}
    for _ in range(repeats):
        full = rng.normal(0, deviation / math.sqrt(2), max_seeds)  # shared by the rows, as in a comparison
        rest = rng.normal(mean, deviation / math.sqrt(2), (rows, max_seeds))
        outcomes = []
        for values in (rest - full).tolist():
            seeds = 3
            while not (verdict := judge(values[:seeds], MARGIN, rows)).is_decided and seeds < max_seeds:
                seeds = min(next_look(seeds), max_seeds)
            outcomes.append(verdict.outcome)
        for outcome in ("no worse", "worse"):
            found[outcome] += outcome in outcomes
        found["all decided"] += "cannot tell" not in outcomes
    return {outcome: count / repeats for outcome, count in found.items()}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("mean", "wrong"), [(-MARGIN, "no worse"), (0.0, "worse")])
def test_type_one_error_of_adding_seeds_until_decided(rows, mean, wrong):
    """Where the truth is at the border, at most 5 % of 2,000 comparisons say that it is beyond, for any row."""
    assert simulate(mean, 0.4, rows, 20, 2000, seed=rows)[wrong] <= 0.05


@pytest.mark.parametrize(("deviation", "rows", "power"), [(0.3, 5, 0.98), (0.4, 5, 0.75), (0.4, 1, 0.97)])
def test_power(deviation, rows, power):
    """A method that loses nothing is found to: all rows of a comparison, within 20 seeds."""
    assert simulate(0.0, deviation, rows, 20, 500, seed=3)["all decided"] >= power


def test_missing_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-prune\[compare\]'"):
        check_installed()
