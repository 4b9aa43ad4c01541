"""OrderDP's weights and their limit, and the check for bias on rules whose bias is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import beta, binom

from lightning_prune import Selection
from lightning_prune.analysis import check_unbiased, limit_density, surrogate_weights
from lightning_prune.functional import infobatch, orderdp, orderdp_inclusion
from lightning_prune.methods.random import random_subset


@pytest.mark.parametrize("q", [10, 50, 100])
def test_weights_are_probabilities_that_flatten(q):
    weights = surrogate_weights(400, 100, q)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((weights.diff() <= 1e-15).all())
    assert float(weights[0]) == pytest.approx(100 / 400 / q)
    if q == 100:
        assert torch.equal(weights, torch.full((400,), 1 / 400, dtype=torch.float64))


@pytest.mark.parametrize(("s", "q"), [(1, 1), (4, 2), (100, 30), (300, 299), (7, 7)])
def test_limit_density_is_binomial_and_beta(s, q):
    z = torch.linspace(0, 1, 41, dtype=torch.float64)
    density = limit_density(z, s, q)
    assert density.numpy() == pytest.approx(s * binom.cdf(q - 1, s - 1, z.numpy()), abs=1e-9 * s)
    if q < s:
        assert (1 - density / s).numpy() == pytest.approx(beta(q, s - q).cdf(z.numpy()), abs=1e-9)


def test_weights_converge_to_the_limit():
    gaps = []
    for n in (200, 1000, 5000, 50_000):
        ranks = torch.arange(1, n + 1, dtype=torch.float64)
        gaps.append(float((n * orderdp_inclusion(n, 100, 30) - limit_density(ranks / n, 100, 30)).abs().max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 < gaps[0]


LOSSES = torch.rand(60, generator=torch.Generator().manual_seed(0)) ** 3
VALUES = torch.randn(60, generator=torch.Generator().manual_seed(1)) + LOSSES


def check(rule, values=VALUES, **kwargs):
    return check_unbiased(rule, values, 4000, generator=torch.Generator().manual_seed(2), **kwargs)


def test_unbiased_rules_pass():
    for found in (
        check(lambda g: infobatch(LOSSES, 0.6, generator=g)),
        check(lambda g: infobatch(LOSSES, 0.6, mode="bernoulli", generator=g)),
        check(lambda g: Selection(random_subset(60, 20, generator=g).indices, torch.full((20,), 3.0))),
    ):
        assert abs(found.z) < 5
        assert found.standard_error > 0
        assert float((found.attendance - 1).abs().max()) < 5 * math.sqrt(2 / 4000)  # w in {0, 1/k}: variance <= 2


def test_biased_rules_are_found():
    assert check(lambda g: random_subset(60, 20, generator=g), LOSSES).z < -50
    hardest = check(lambda g: Selection(orderdp(LOSSES, 40, 20, generator=g).indices, torch.full((20,), 3.0)), LOSSES)
    assert hardest.z > 50
    assert hardest.relative_bias > 0.5
    constant = check(lambda g: Selection(torch.arange(30)))
    assert math.isinf(constant.z)
    assert check(lambda g: Selection.all(60)).z == 0


def test_orderdp_is_unbiased_for_its_surrogate():
    gamma = orderdp_inclusion(60, 40, 20)
    order = LOSSES.argsort(descending=True)
    found = check(lambda g: orderdp(LOSSES, 40, 20, generator=g), target=float((gamma * VALUES[order].double()).sum()))
    assert abs(found.z) < 5
    error = (gamma * (1 - gamma) / 4000).sqrt().clamp(min=1e-4)
    assert float(((found.attendance[order] - gamma) / error).abs().max()) < 5


def test_toy_of_the_paper():
    """InfoBatch's sum over five gradients 1..5 is unbiased; what Table 10 shows is the division by the number kept."""
    gradients = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    found = check_unbiased(
        lambda g: infobatch(gradients, 0.8, mode="bernoulli", generator=g),
        gradients, 20_000, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert found.target == 15
    assert abs(found.z) < 5
    assert abs(found.relative_bias) < 0.02


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: limit_density(torch.tensor([1.5]), 4, 2), r"`positions` in \[0, 1\]"),
        (lambda: limit_density(torch.tensor([0.5]), 4, 5), "`exploit_size`"),
        (lambda: surrogate_weights(3, 4, 1), "`explore_size`"),
        (lambda: check_unbiased(lambda g: Selection.all(2), torch.ones(2), 1), "`num_draws`"),
        (lambda: check_unbiased(lambda g: Selection.all(2), torch.ones(2, 2), 5), "`values`"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
