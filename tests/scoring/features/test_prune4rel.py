from __future__ import annotations

import math

import pytest
import torch

from lightning_prune.scoring import prune4rel


def reference_prune4rel(probs, points, k, threshold=0.95, temperature=1.0):
    points = torch.nn.functional.normalize(points.double())
    confidence = probs.double().amax(1).tolist()
    n, order = len(points), []
    neighbours = [0.0] * n
    for _ in range(k):
        gains = [
            -1.0
            if j in order
            else math.tanh((neighbours[j] + confidence[j]) / temperature) - math.tanh(neighbours[j] / temperature)
            for j in range(n)
        ]
        best = max(range(n), key=lambda j: (gains[j], -j))
        order.append(best)
        for i in range(n):
            similarity = (1 + float(points[i] @ points[best])) / 2
            if similarity > threshold:
                neighbours[i] += similarity * confidence[best]
    return order


def test_golden(golden):
    probs = golden["logits"][-1].softmax(1)
    order = prune4rel(probs, golden["features"], 20, threshold=0.95, temperature=1.0)
    assert torch.equal(order, golden["prune4rel_tau0.95_eta1_bal0_k20_order"])


@pytest.mark.parametrize(("threshold", "temperature"), [(0.95, 1.0), (0.6, 2.0), (0.8, 0.5)])
def test_reference(golden, threshold, temperature):
    probs, points = golden["logits"][3].softmax(1), golden["features"]
    expected = reference_prune4rel(probs, points, 30, threshold, temperature)
    assert prune4rel(probs, points, 30, threshold=threshold, temperature=temperature).tolist() == expected


def test_dense_neighbourhoods_do_not_saturate():
    """All are neighbours: after 40 choices tanh is 1 to the last bit, yet confidence still decides."""
    probs = torch.linspace(0.5, 0.99, 80)
    probs = torch.stack([probs, 1 - probs], 1)
    order = prune4rel(probs, torch.ones(80, 3), 80)
    assert order.tolist() == list(range(79, -1, -1))


def test_bad_inputs():
    probs, points = torch.full((4, 2), 0.5), torch.ones(4, 3)
    with pytest.raises(ValueError, match="`embeddings` to have shape"):
        prune4rel(probs, points[:3], 2)
    with pytest.raises(ValueError, match=r"`threshold` to be a number in \[0, 1\)"):
        prune4rel(probs, points, 2, threshold=1.0)
    with pytest.raises(ValueError, match="`temperature` to be a number > 0"):
        prune4rel(probs, points, 2, temperature=0.0)
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 4"):
        prune4rel(probs, points, 5)
