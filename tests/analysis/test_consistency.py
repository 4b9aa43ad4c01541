"""RePB's theory: the drift of SGD on losses whose constants are known, and the weights over all attendances."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lightning_prune.analysis import cumulative_alignment, drift_bound, score_drift
from lightning_prune.functional import repb_resample, repb_retain


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [0, 1, 4, 16])
def test_drift_stays_within_the_bound(steps):
    """Losses ``|x_i theta - y_i|``: L and G are the largest ``|x_i|``; the drift is of every two states of a window."""
    x, y = torch.randn(50, 5, generator=seeded()), torch.randn(50, generator=seeded(1)) * 3
    theta, states = torch.zeros(5), []
    for _ in range(33):
        states.append((x @ theta - y).abs())
        batch = torch.randint(50, (8,), generator=seeded(len(states)))
        theta = theta - 0.05 * ((x[batch] @ theta - y[batch]).sign()[:, None] * x[batch]).mean(0)
    constant = float(x.norm(dim=1).max())
    bound = drift_bound(constant, constant, 0.05, steps)
    drifts = [score_drift(states[t], states[t + steps]).largest for t in range(33 - steps)]
    assert max(drifts) <= bound + 1e-6
    assert max(drifts) > 0.04 * bound or steps == 0  # the bound says something


def test_drift_against_a_loop():
    before, after = torch.rand(30, generator=seeded()), torch.rand(30, generator=seeded(1))
    drift = score_drift(before, after)
    gaps = [abs(float(a) - float(b)) for a, b in zip(before, after, strict=True)]
    low = [(float(a) < float(before.mean())) != (float(b) < float(after.mean())) for a, b in
           zip(before, after, strict=True)]  # fmt: skip
    assert drift.mean == pytest.approx(sum(gaps) / 30)
    assert drift.largest == pytest.approx(max(gaps))
    assert drift.flipped == pytest.approx(sum(low) / 30)
    assert score_drift(before, before).flipped == 0


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_expected_weight_over_all_attendances(p):
    """Eq. 7 for a constant chance, over all 2^7 attendances: ``1 - (1 - p)^E`` in the epoch after E others."""
    everyone = torch.tensor([(True, *rest) for rest in product([False, True], repeat=7)])
    chances = torch.tensor(
        [p ** sum(row[1:]) * (1 - p) ** (7 - sum(row[1:])) for row in everyone.tolist()], dtype=torch.float64
    )
    for epochs in range(1, 8):
        mean = float((cumulative_alignment(everyone.T[: epochs + 1]) * chances).sum())
        assert mean == pytest.approx(sum(1 - (1 - p) ** e for e in range(1, epochs + 1)) / epochs)


def repb_run(scores, prune_ratio, epochs, generator):
    """Attendance ``(e, n)`` of RePB with scores that stay, in random windows of 50."""
    n = len(scores)
    attended = [torch.ones(n, dtype=torch.bool)]
    for _ in range(epochs - 1):
        inside = attended[-1].nonzero().squeeze(1)
        inside = inside[torch.randperm(len(inside), generator=generator)]
        stays = repb_retain(scores[inside], torch.arange(len(inside)) // 50, prune_ratio, generator=generator)
        chosen = repb_resample(attended[-1], prune_ratio, generator=generator)
        chosen[inside[stays]] = True
        attended.append(chosen)
    return torch.stack(attended)


def test_repb_aligns_in_the_long_run():
    """Eq. 9: over late epochs each sample's weights add up to those of full training; early on to less."""
    scores = torch.rand(400, generator=seeded()) ** 2
    attended = repb_run(scores, 0.5, 400, seeded(1))
    counts = attended.cumsum(0)[:-1].double()
    weights = attended[1:] * torch.arange(1, 400)[:, None] / counts
    late = weights[200:].mean(0)
    # of a two-state chain, 200 epochs have a deviation of at most 0.12; over 400 samples 5 standard errors are 0.03
    assert abs(float(late.mean()) - 1) < 0.03
    assert float((late - 1).abs().max()) < 0.6
    assert float(cumulative_alignment(attended[:8]).mean()) < 1
    uneven = attended[200:].double().mean(0)
    assert float(uneven.max() - uneven.min()) > 0.3  # without the weights samples count differently


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: drift_bound(-1.0, 1.0, 0.1, 1), ValueError, "`lipschitz`"),
        (lambda: drift_bound(1.0, 1.0, 0.1, -1), ValueError, "`steps`"),
        (lambda: score_drift(torch.ones(2), torch.ones(3)), ValueError, "of the same samples, but got"),
        (lambda: score_drift(torch.ones(1), torch.tensor([torch.nan])), ValueError, "finite scores, but 1 of 1"),
        (lambda: cumulative_alignment(torch.ones(3, 2)), TypeError, "`attended` to be a bool tensor"),
        (
            lambda: cumulative_alignment(torch.tensor([[True, False], [True, True]])),
            ValueError,
            "first epoch.*but 1 are not",
        ),
        (lambda: cumulative_alignment(torch.ones(1, 2, dtype=torch.bool)), ValueError, "e >= 2"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
