from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_prune.scoring import moderate_distance, select_middle


@pytest.mark.parametrize("center", ["median", "mean"])
def test_reference(golden, center):
    features, targets = golden["features"].double().numpy(), golden["targets"].numpy()
    middle = np.median if center == "median" else np.mean
    expected = [
        np.linalg.norm(x - middle(features[targets == y], axis=0)) for x, y in zip(features, targets, strict=True)
    ]
    distances = moderate_distance(golden["features"], golden["targets"], center=center)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=0, atol=5e-6)


def test_golden(golden):
    distances = moderate_distance(golden["features"], golden["targets"])
    torch.testing.assert_close(distances, golden["moderate_distance"].float(), rtol=0, atol=5e-6)
    assert torch.equal(select_middle(distances, 0.5), golden["moderate_keep0.5"])


def test_a_class_of_one_and_labels_with_gaps():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert moderate_distance(features, torch.tensor([-7, 100, -7])).tolist() == [0.0, 0.0, 0.0]


def test_half_precision_is_computed_in_float32(golden):
    half = golden["features"].half()
    expected = moderate_distance(half.float(), golden["targets"])
    assert torch.equal(moderate_distance(half, golden["targets"]), expected)


def test_bad_inputs(golden):
    features, targets = golden["features"], golden["targets"]
    with pytest.raises(ValueError, match="`features` to be finite, but got 8 NaN"):
        moderate_distance(torch.where(torch.arange(60)[:, None] == 3, torch.nan, features), targets)
    with pytest.raises(ValueError, match="`features` to have shape"):
        moderate_distance(features[0], targets)
    with pytest.raises(ValueError, match="`features` to have at least one row"):
        moderate_distance(features[:0], targets[:0])
    with pytest.raises(TypeError, match="`features` to be a floating-point tensor"):
        moderate_distance(features.long(), targets)
    with pytest.raises(ValueError, match="`targets` to be class ids"):
        moderate_distance(features, targets[:-1])
    with pytest.raises(ValueError, match="`center` to be one of"):
        moderate_distance(features, targets, center="mode")
