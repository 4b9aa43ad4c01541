from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import herding


def reference_herding(points, k, sign=1):
    points, order = points.double(), []
    mean = points.mean(0)
    for t in range(1, k + 1):
        target = t * mean - sum((points[j] for j in order), torch.zeros_like(mean))
        gaps = [float("inf") if j in order else sign * float((target - x).norm()) for j, x in enumerate(points)]
        order.append(min(range(len(points)), key=lambda j: (gaps[j], j)))
    return order


def test_golden(golden):
    assert torch.equal(herding(golden["features"], 20), golden["herding_k20_order"])


def test_reference(golden):
    assert herding(golden["features"], 60).tolist() == reference_herding(golden["features"], 60)


def test_farthest(golden):
    assert herding(golden["features"], 60, farthest=True).tolist() == reference_herding(golden["features"], 60, -1)


def test_mean_is_followed(golden):
    features = golden["features"]
    gap = (features[herding(features, 10)].mean(0) - features.mean(0)).norm()
    random = [
        (
            features[torch.randperm(60, generator=torch.Generator().manual_seed(s))[:10]].mean(0) - features.mean(0)
        ).norm()
        for s in range(20)
    ]
    assert gap < min(random)


def test_duplicates_are_not_chosen_twice():
    assert sorted(herding(torch.ones(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("k", [0, 5])
def test_k_range(k):
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 4"):
        herding(torch.zeros(4, 2), k)
