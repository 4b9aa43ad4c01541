from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import DUAL, beta_sampling
from lightning_prune.scoring.selectors.beta_sampling import beta_weights


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_golden(feed, golden):
    dual = feed(DUAL(60))
    weights = beta_weights(dual.compute(), dual.difficulty_mean, 0.7)
    torch.testing.assert_close(weights, golden["dual_beta_keep0.3_cd4_p"], rtol=0, atol=1e-7)


def test_the_density_is_scipys_beta():
    stats = pytest.importorskip("scipy.stats")
    scores, mu = torch.rand(50, generator=seeded(), dtype=torch.float64), torch.rand(50, generator=seeded(1)).double()
    hardest = mu[scores.argsort(descending=True)[:10]].mean().item()
    for p, c_d in ((0.3, 4.0), (0.9, 5.5), (0.0, 4.0)):
        beta = 15 * (1 - hardest) * (1 - p**c_d)
        expected = torch.from_numpy(stats.beta.pdf(mu.numpy(), 16 - beta, beta)) * scores
        torch.testing.assert_close(beta_weights(scores, mu, p, c_d=c_d), expected / expected.sum())


def test_draws_follow_the_weights():
    """Inclusion in two successive draws without replacement, against its exact law."""
    scores, mu = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.3, 0.5, 0.6, 0.4])
    p = beta_weights(scores, mu, 0.5)
    inclusion = torch.tensor(
        [float(p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i)) for i in range(4)]
    )
    counts, generator, draws = torch.zeros(4), seeded(), 4000
    for _ in range(draws):
        counts[beta_sampling(scores, mu, 2, generator=generator)] += 1
    sigma = (draws * inclusion * (1 - inclusion)).sqrt()
    assert ((counts - draws * inclusion).abs() < 4.5 * sigma + 1).all()


def test_zero_weights_come_last():
    scores, mu = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([0.2, 0.5, 0.9, 0.5, 0.4])
    assert beta_sampling(scores, mu, 2, generator=seeded()).tolist() == [1, 3]
    assert beta_sampling(scores, mu, 3, generator=seeded()).tolist() == [1, 2, 3]
    assert beta_sampling(scores, mu, 5, generator=seeded()).tolist() == [0, 1, 2, 3, 4]
    assert len(beta_sampling(torch.zeros(4), torch.rand(4, generator=seeded()), 2)) == 2


def test_means_of_exactly_zero_and_one():
    weights = beta_weights(torch.ones(3), torch.tensor([0.0, 0.5, 1.0]), 0.5)
    assert weights.isfinite().all()
    assert weights[1] > 0.99


def test_bad_inputs():
    scores, mu = torch.ones(3), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match=r"`difficulty_mean`"):
        beta_sampling(scores, mu + 1, 2)
    with pytest.raises(ValueError, match=r"`difficulty_mean`"):
        beta_sampling(scores, mu[:2], 2)
    with pytest.raises(ValueError, match="finite and >= 0"):
        beta_sampling(-scores, mu, 2)
    with pytest.raises(ValueError, match="`c_d` to be a number > 0"):
        beta_sampling(scores, mu, 2, c_d=0.0)
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 3"):
        beta_sampling(scores, mu, 4)
