"""OrderDP's theory: over all candidate sets there are, and over many runs of OrderDP on convex losses."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from lightning_prune.analysis import (
    convergence_bound,
    generalization_bound,
    limit_density,
    spectrum_deviation,
    surrogate_gap,
    surrogate_loss,
    surrogate_weights,
)
from lightning_prune.functional import orderdp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def candidate_sets(n, s):
    return torch.tensor(list(combinations(range(n), s)))


@pytest.mark.parametrize(("n", "s", "q"), [(5, 3, 1), (8, 4, 2), (9, 5, 5), (7, 7, 3), (6, 1, 1)])
def test_surrogate_loss_over_all_candidate_sets(n, s, q):
    """Theorem 1: the mean over all sets of the mean loss of the q hardest; and the gradient of both."""
    theta = torch.randn(3, dtype=torch.float64, generator=seeded()).requires_grad_()
    losses = (torch.randn(n, 3, dtype=torch.float64, generator=seeded(1)) @ theta).square()
    kept = losses[candidate_sets(n, s)].sort(1, descending=True).values[:, :q]
    found = surrogate_loss(losses, s, q)
    torch.testing.assert_close(found, kept.mean(), rtol=1e-12, atol=0)
    for mine, expected in zip(
        torch.autograd.grad(found, theta, retain_graph=True), torch.autograd.grad(kept.mean(), theta), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


def test_the_gap_is_never_negative_and_closes_as_q_rises():
    losses = torch.rand(40, dtype=torch.float64, generator=seeded()) ** 3
    gaps = [float(surrogate_gap(losses, 20, q)) for q in range(1, 21)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(0, abs=1e-12)
    assert gaps[0] == pytest.approx(float(surrogate_loss(losses, 20, 1) - losses.mean()))
    states = torch.stack([losses, 2 * losses])
    assert surrogate_gap(states, 20, 5).tolist() == pytest.approx([gaps[4], 2 * gaps[4]])


def test_spectrum_deviation():
    """Against the weights one by one; for many samples that of the limit density."""
    for n, s, q in ((5, 3, 1), (40, 20, 15), (40, 20, 20), (9, 9, 2)):
        expected = max(abs(n * float(w) - 1) for w in surrogate_weights(n, s, q))
        assert spectrum_deviation(n, s, q) == pytest.approx(expected, abs=1e-12)
    limit = limit_density(torch.linspace(0, 1, 1001, dtype=torch.float64), 100, 30) / 30
    assert spectrum_deviation(100_000, 100, 30) == pytest.approx(float((limit - 1).abs().max()), rel=1e-3)


def l_risk(values, weights):
    """The weighted sum of sorted values, whose weights are a step density on (0, 1) with n steps, read at s steps."""
    n, s = len(weights), values.shape[1]
    edges = torch.arange(s + 1, dtype=torch.float64) * n / s
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), weights.cumsum(0)])
    whole = edges.floor().long().clamp(max=n)
    inside = cumulative[whole] + (edges - whole) * weights[whole.clamp(max=n - 1)]
    return (values.sort(1, descending=True).values * inside.diff()).sum(1)


@pytest.mark.parametrize(("s", "q"), [(2, 1), (5, 2), (8, 3), (8, 7), (10, 4)])
def test_the_sampling_term_bounds_what_a_candidate_set_adds(s, q):
    """The step of Theorem 4's proof (Lemma 14 of Mehta et al.), over all candidate sets of 10 samples."""
    losses = torch.rand(10, dtype=torch.float64, generator=seeded(s)) ** 2 * 5
    weights, uniform = surrogate_weights(10, s, q), torch.full((10,), 0.1, dtype=torch.float64)
    sets = losses[candidate_sets(10, s)]
    added = l_risk(sets, weights).mean() - l_risk(losses[None], weights)[0]
    added -= l_risk(sets, uniform).mean() - l_risk(losses[None], uniform)[0]
    bound = generalization_bound(losses, s, q, optimization=0.25)
    assert abs(float(added)) <= bound.sampling + 1e-12
    assert bound.gap == pytest.approx(float(l_risk(losses[None], weights)[0] - losses.mean()))
    assert bound.bias == pytest.approx(bound.sampling - bound.gap)
    assert bound.total == pytest.approx(bound.bias + 0.25)


def test_the_terms_of_several_states():
    states = torch.tensor([[1.0, -4.0, 2.0], [3.0, 0.0, 0.0]])
    bound = generalization_bound(states, 2, 1)
    assert bound.largest_loss == 3
    assert bound.gap == pytest.approx(min(float(surrogate_gap(state, 2, 1)) for state in states))
    assert bound.deviation == pytest.approx(1.0)
    assert bound.sampling == pytest.approx(math.sqrt(2) * 3 * math.sqrt(1 / 4))


def test_no_bias_without_a_choice():
    """s = q is SGD: nothing deviates, nothing is left of the bias term."""
    bound = generalization_bound(torch.rand(20, generator=seeded()), 10, 10)
    assert bound.deviation == pytest.approx(0, abs=1e-12)
    assert bound.bias == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rates", [[0.3] * 25, [0.8 / math.sqrt(t) for t in range(1, 26)]])
def test_convergence_of_orderdp_itself(rates):
    """Theorem 3 for ``|theta - b_i|``, convex and 1-Lipschitz: the mean of 30 runs, plus 5 standard errors."""
    targets = torch.randn(30, generator=seeded(4)) * 2
    grid = torch.linspace(-4, 4, 401)
    values = torch.stack([surrogate_loss((theta - targets).abs(), 20, 8) for theta in grid])
    least, best = float(values.min()), float(grid[values.argmin()])
    generator, start = seeded(5), 4.0
    ends, mean_ends = [], []
    for _ in range(30):
        theta, weighted, reached = start, 0.0, []
        for rate in rates:
            losses = (theta - targets).abs()
            reached.append(float(surrogate_loss(losses, 20, 8)) if len(reached) % 6 == 0 else math.inf)
            kept = orderdp(losses, 20, 8, generator=generator).indices
            weighted += rate * theta
            theta -= rate * float((theta - targets[kept]).sign().mean())
        ends.append(min(reached) - least)
        mean_ends.append(float(surrogate_loss((weighted / sum(rates) - targets).abs(), 20, 8)) - least)
    for gaps, averaged in ((ends, False), (mean_ends, True)):
        gaps = torch.tensor(gaps)
        bound = convergence_bound(start - best, 1.0, rates, averaged=averaged)
        assert float(gaps.mean() + 5 * gaps.std() / 30**0.5) <= bound


def test_the_best_constant_rate():
    rate = 3 / (2 * math.sqrt(50))
    assert convergence_bound(3.0, 2.0, torch.full((50,), rate, dtype=torch.float64)) == pytest.approx(
        3 * 2 / math.sqrt(50)
    )


def test_toy_of_the_paper():
    """Appendix E.1, its sizes drawn alike: 4.26 by enumeration, 4.24 by the printed chances, not the printed 4.06."""
    gradients = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    by_size = [gradients[candidate_sets(5, s)].amax(1).mean() for s in range(1, 6)]
    exact = sum(by_size) / 5
    assert float(exact) == pytest.approx(4.26)
    assert sum(float(surrogate_loss(gradients, s, 1)) for s in range(1, 6)) / 5 == pytest.approx(4.26)
    printed = torch.tensor([1 / 25, 3 / 50, 3 / 25, 9 / 50, 3 / 5], dtype=torch.float64)
    assert float((printed * gradients).sum()) == pytest.approx(4.24)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: surrogate_loss(torch.ones(2, 2), 1, 1), r"shape \(n,\)"),
        (lambda: surrogate_loss(torch.ones(3), 4, 1), "`explore_size`"),
        (lambda: surrogate_gap(torch.ones(2, 2, 2), 1, 1), r"shape \(n,\) or \(t, n\)"),
        (lambda: generalization_bound(torch.ones(1), 1, 1), "at least 2 samples"),
        (lambda: convergence_bound(-1.0, 1.0, [0.1]), "`distance`"),
        (lambda: convergence_bound(1.0, -1.0, [0.1]), "`lipschitz`"),
        (lambda: convergence_bound(1.0, 1.0, []), "`learning_rates` > 0, at least one"),
        (lambda: convergence_bound(1.0, 1.0, [0.1, 0.0]), "`learning_rates` > 0"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
