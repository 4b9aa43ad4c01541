from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.scoring import kcenter


def reference_kcenter(points, k, first):
    points, order = points.double(), [first]
    while len(order) < k:
        nearest = [
            -1.0 if j in order else min(float((x - points[c]).norm()) for c in order) for j, x in enumerate(points)
        ]
        order.append(max(range(len(points)), key=lambda j: (nearest[j], -j)))
    return order


def test_golden(golden):
    assert torch.equal(kcenter(golden["features"], 10, first=44), golden["kcenter_k10_first44_order"])


def test_reference(golden):
    assert kcenter(golden["features"], 60, first=3).tolist() == reference_kcenter(golden["features"], 60, 3)


@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=30)
def test_choices_differ_and_prefixes_agree(n, dim, seed):
    points = torch.randint(0, 3, (n, dim), generator=torch.Generator().manual_seed(seed)).float()  # many duplicates
    order = kcenter(points, n, first=n // 2)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(kcenter(points, (n + 1) // 2, first=n // 2), order[: (n + 1) // 2])


def test_far_from_the_origin():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]]) + 1e4
    assert kcenter(points, 4, first=0).tolist() == [0, 3, 2, 1]


def test_the_first_is_drawn_from_the_generator():
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    draws = [kcenter(points, 1, generator=torch.Generator().manual_seed(seed)).item() for seed in range(20)]
    assert draws[3] == kcenter(points, 1, generator=torch.Generator().manual_seed(3)).item()
    assert len(set(draws)) > 5


@pytest.mark.parametrize("k", [0, 5])
def test_k_range(k):
    with pytest.raises(ValueError, match="`k` to be an int >= 1 and <= 4"):
        kcenter(torch.zeros(4, 2), k)


def test_bad_inputs():
    with pytest.raises(ValueError, match="`first` to be an int >= 0 and <= 3"):
        kcenter(torch.zeros(4, 2), 2, first=4)
    with pytest.raises(ValueError, match="`features` to be finite"):
        kcenter(torch.full((4, 2), torch.inf), 2)
