"""MoSo: one gradient after another by autograd, and what a step on a sample does to the loss of the others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune.scoring import moso


def gradient(logits_of, ids, targets, weight):
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(logits_of(weight)[ids], targets[ids]), weight)[0]


def test_against_a_loop(golden, head):
    logits, _, _, targets = head
    inputs = F.pad(golden["features"], (0, 1), value=1.0).double()
    weight = torch.cat([golden["head_weight"], golden["head_bias"][:, None]], 1).double()
    expected = []
    for i in range(60):
        others = [j for j in range(60) if j != i]
        own = gradient(lambda w: inputs @ w.T, [i], targets, weight)
        rest = gradient(lambda w: inputs @ w.T, others, targets, weight)
        expected.append((own * rest).sum())
    scores = moso(logits, golden["features"], targets)
    torch.testing.assert_close(scores, torch.stack(expected).float(), rtol=1e-4, atol=1e-5)


def test_a_step_on_a_sample_lowers_the_loss_of_the_others(golden, head):
    """By the score times the step, to first order."""
    logits, _, _, targets = head
    inputs = F.pad(golden["features"], (0, 1), value=1.0).double()
    weight = torch.cat([golden["head_weight"], golden["head_bias"][:, None]], 1).double()
    scores = moso(logits, golden["features"], targets)
    for i in (0, 17, 42):
        others = [j for j in range(60) if j != i]
        moved = weight - 1e-5 * gradient(lambda w: inputs @ w.T, [i], targets, weight)
        fall = F.cross_entropy((inputs @ weight.T)[others], targets[others])
        fall -= F.cross_entropy((inputs @ moved.T)[others], targets[others])
        assert float(fall) / 1e-5 == pytest.approx(float(scores[i]), rel=1e-2, abs=1e-4)


def test_one_sample_has_no_others():
    with pytest.raises(ValueError, match="at least 2 samples"):
        moso(torch.zeros(1, 2), torch.ones(1, 1), torch.tensor([0]))
