from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_prune.scoring import glister


def reference_glister(logits, features, targets, k, rounds, learning_rate, step, val=None):
    """Explicit gradients (C, D + 1) and a step of the head's weights."""
    logits, features = logits.double(), features.double()
    val_logits, val_features, val_targets = val or (logits, features, targets)
    val_logits, val_features = val_logits.double(), val_features.double()

    def grads(z, h, y):
        g = z.softmax(1) - F.one_hot(y, z.shape[1])
        return torch.einsum("nc,nd->ncd", g, torch.cat([h, torch.ones(len(h), 1)], 1))

    train, order = grads(logits, features, targets), []
    while len(order) < k:
        moved = torch.zeros_like(train[0])
        if order:
            moved = train[order].mean(0) if step == "mean" else train[order].sum(0)
        inputs = torch.cat([val_features, torch.ones(len(val_features), 1)], 1)
        shifted = val_logits - learning_rate * inputs @ moved.T
        target = grads(shifted, val_features, val_targets).mean(0)
        gains = (train * target).sum((1, 2))
        gains[order] = -torch.inf
        picks = gains.argsort(descending=True, stable=True)[: min(math.ceil(k / rounds), k - len(order))]
        order += picks.tolist()
    return order


@pytest.mark.parametrize("rounds", [1, 4, 20])
@pytest.mark.parametrize("step", ["mean", "sum"])
def test_reference(golden, head, rounds, step):
    logits, _, _, targets = head
    expected = reference_glister(logits, golden["features"], targets, 20, rounds, 0.1, step)
    order = glister(logits, golden["features"], targets, 20, rounds=rounds, step=step)
    assert order.tolist() == expected


def test_held_out_validation(golden, head):
    logits, _, _, targets = head
    features = golden["features"]
    val = logits[40:], features[40:], targets[40:]
    expected = reference_glister(logits[:40], features[:40], targets[:40], 10, 10, 0.5, "mean", val)
    order = glister(
        logits[:40],
        features[:40],
        targets[:40],
        10,
        val_logits=val[0],
        val_features=val[1],
        val_targets=val[2],
        rounds=10,
        learning_rate=0.5,
    )
    assert order.tolist() == expected


@pytest.mark.parametrize("k", [1, 7, 16, 60])
def test_k_need_not_divide(golden, head, k):
    logits, _, _, targets = head
    order = glister(logits, golden["features"], targets, k)
    assert len(set(order.tolist())) == k


def test_bad_inputs(golden, head):
    logits, _, _, targets = head
    features = golden["features"]
    with pytest.raises(ValueError, match="got no `val_features` and no `val_targets`"):
        glister(logits, features, targets, 5, val_logits=logits)
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 60"):
        glister(logits, features, targets, 0)
    with pytest.raises(ValueError, match="`step` to be one of"):
        glister(logits, features, targets, 5, step="median")
    with pytest.raises(ValueError, match="`learning_rate` to be a number > 0"):
        glister(logits, features, targets, 5, learning_rate=0.0)
