from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import contextual_diversity


def reference(probs, k, first):
    p, order = probs.double().clamp(min=1e-8), [first]

    def distance(a, b):
        return float(0.5 * ((a - b) * (a.log() - b.log())).sum())

    while len(order) < k:
        nearest = [-1.0 if j in order else min(distance(x, p[c]) for c in order) for j, x in enumerate(p)]
        order.append(max(range(len(p)), key=lambda j: (nearest[j], -j)))
    return order


def test_reference(head):
    _, probs, _, _ = head
    assert contextual_diversity(probs, 20, first=5).tolist() == reference(probs, 20, 5)


def test_underflow_is_clamped():
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert contextual_diversity(probs, 3, first=0).tolist() == [0, 1, 2]


def test_bad_inputs():
    with pytest.raises(ValueError, match="negative element. Apply softmax"):
        contextual_diversity(torch.tensor([[-1.0, 2.0]]), 1)
    with pytest.raises(ValueError, match="d >= 2"):
        contextual_diversity(torch.ones(3, 1), 1)
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 3"):
        contextual_diversity(torch.ones(3, 2) / 2, 4)
