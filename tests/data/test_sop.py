from __future__ import annotations

import math

import pytest
import torch

from lightning_prune.data import SOPLoss, inject_label_noise


def reference_sop(logits, target, u, v):
    """One sample, in Python floats."""
    top = max(logits)
    exps = [math.exp(z - top) for z in logits]
    probs = [e / sum(exps) for e in exps]
    right = [min(max(u * u, 0), 1) if c == target else 0 for c in range(len(logits))]
    wrong = [0 if c == target else min(max(x * x, 0), 1) for c, x in enumerate(v)]
    mixed = [max(p + a - b, 1e-4) for p, a, b in zip(probs, right, wrong, strict=True)]
    corrected = max(mixed[target] / sum(mixed), 1e-4)
    predicted = logits.index(top)
    rest = [(c == predicted) + a - b - (c == target) for c, (a, b) in enumerate(zip(right, wrong, strict=True))]
    return -math.log(corrected) + sum(r * r for r in rest)


def random_case(seed=0, n=9, batch=5, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    sop = SOPLoss(n, num_classes, generator=generator)
    sop.u.data = torch.randn(n, 1, generator=generator)
    sop.v.data = torch.randn(n, num_classes, generator=generator)
    logits = torch.randn(batch, num_classes, generator=generator) * 2
    return (
        sop,
        logits,
        torch.randint(num_classes, (batch,), generator=generator),
        torch.randperm(n, generator=generator)[:batch],
    )


def test_reference():
    sop, logits, targets, indices = random_case()
    losses = sop(logits, targets, indices)
    expected = [
        reference_sop(z, y, sop.u[i].item(), sop.v[i].tolist())
        for z, y, i in zip(logits.tolist(), targets.tolist(), indices.tolist(), strict=True)
    ]
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_gradients_reach_the_rows_of_the_batch_only():
    sop, logits, targets, indices = random_case()
    logits.requires_grad_()
    sop(logits, targets, indices).mean().backward()
    assert sop.u.grad.is_sparse
    rows = sop.v.grad.to_dense().abs().sum(1).nonzero().flatten().tolist()
    assert set(rows) <= set(indices.tolist())
    assert logits.grad.abs().sum() > 0


def test_v_is_learned_by_the_second_term_only():
    """The cross entropy sees V without gradient; its gradient would point the other way."""
    sop = SOPLoss(1, 2)
    sop.v.data = torch.tensor([[0.0, 0.5]])
    sop(torch.tensor([[0.0, 3.0]]), torch.tensor([0]), torch.tensor([0])).sum().backward()
    # d/dv of (1 - v^2)^2 at 0.5, the prediction being class 1
    torch.testing.assert_close(sop.v.grad.to_dense()[0, 1], torch.tensor(-4 * 0.5 * (1 - 0.25)))


def test_plus_terms():
    sop, logits, targets, indices = random_case()
    plain = sop(logits, targets, indices)
    sop.consistency, strong = 0.9, logits + 1.5 * torch.eye(5)[:, :4]
    views = (logits.softmax(1) * (logits.log_softmax(1) - strong.log_softmax(1))).sum(1)
    torch.testing.assert_close(sop(logits, targets, indices, strong), plain + 0.9 * views)
    sop.consistency, sop.balance = 0.0, 0.1
    extra = sop(logits, targets, indices) - plain
    torch.testing.assert_close(extra, extra[:1].expand(5))
    assert extra[0] >= 0.1 * math.log(4) - 1e-6  # -mean log q, least at the uniform q


def test_the_balance_acts():
    """Its gradient is that of -mean log q, q the mean of the corrected predictions."""
    sop, logits, targets, indices = random_case()
    sop.u.data.zero_()
    sop.v.data.zero_()  # nothing is corrected
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(-0.1 * logits.softmax(1).mean(0).log().mean(), logits)
    plain = sop(logits, targets, indices).mean()
    sop.balance = 0.1
    (found,) = torch.autograd.grad(sop(logits, targets, indices).mean() - plain, logits)
    torch.testing.assert_close(found, expected)
    assert found.norm() > 0.01


def test_wrong_labels_are_found():
    """Two blobs, 30 % of the labels flipped: the predictions become the clean labels, and v of wrong ones grows."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(2, (200,), generator=generator)
    x = torch.randn(200, 2, generator=generator) + 4.0 * clean[:, None]
    noisy, flipped = inject_label_noise(clean, "symmetric", 0.3, 2, generator=generator)
    model, sop = torch.nn.Linear(2, 2), SOPLoss(200, 2, generator=generator)
    model.weight.data.zero_()
    model.bias.data.zero_()
    optimizer = torch.optim.SGD(
        [{"params": model.parameters()}, *sop.param_groups()], lr=0.05, momentum=0.9, weight_decay=1e-4
    )
    for _ in range(60):
        for ids in torch.split(torch.randperm(200, generator=generator), 50):
            optimizer.zero_grad()
            sop(model(x[ids]), noisy[ids], ids).mean().backward()
            optimizer.step()
    assert (model(x).argmax(1) == clean).float().mean() > 0.97
    learned = sop.v.detach().square().sum(1)
    assert learned[flipped].mean() > 10 * learned[~flipped].mean()


def test_bad_inputs():
    sop, logits, targets, indices = random_case()
    with pytest.raises(ValueError, match=r"no `strong_logits` with SOPLoss\(consistency=0\)"):
        sop(logits, targets, indices, logits)
    with pytest.raises(ValueError, match=r"`strong_logits`.* with SOPLoss\(consistency=0.9\), but got None"):
        SOPLoss(9, 4, consistency=0.9)(logits, targets, indices)
    with pytest.raises(ValueError, match="Mixed targets"):
        sop(logits, logits.softmax(1), indices)
    with pytest.raises(ValueError, match="`num_classes` to be an int >= 2"):
        SOPLoss(3, 1)
    with pytest.raises(ValueError, match="`balance` to be a number >= 0"):
        SOPLoss(3, 2, balance=-1.0)
