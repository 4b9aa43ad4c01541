from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import craig


def reference_craig(grads, features, targets, keep):
    """Explicit gradients, the whole similarity matrix, naive greedy; ``keep`` per class."""
    ids, weights = [], []
    for label in targets.unique():
        members = (targets == label).nonzero().squeeze(1)
        g, h = grads[members].double(), features[members].double()
        full = torch.cat([g, (g[:, :, None] * h[:, None, :]).flatten(1)], 1)
        distances = torch.cdist(full, full, compute_mode="donot_use_mm_for_euclid_dist")
        similarity = distances.max() - distances + 1e-3
        chosen, covered = [], torch.zeros(len(members), dtype=torch.float64)
        for _ in range(keep):
            gains = (similarity - covered[:, None]).clamp(min=0).sum(0)
            gains[chosen] = -1
            chosen.append(int(gains.argmax()))
            covered = torch.maximum(covered, similarity[:, chosen[-1]])
        chosen.sort()
        owners = similarity[:, chosen].argmax(1)
        ids += members[chosen].tolist()
        weights += owners.bincount(minlength=keep).tolist()
    return ids, weights


def test_golden(golden, head):
    _, _, grads, targets = head
    chosen = craig(grads, golden["features"], targets, 0.25)
    assert torch.equal(chosen.indices, golden["craig_keep25_ids"])


@pytest.mark.parametrize("keep", [1, 3, 9, 12])
def test_reference(golden, head, keep):
    _, _, grads, targets = head
    chosen = craig(grads, golden["features"], targets, keep / 12)
    ids, weights = reference_craig(grads, golden["features"], targets, keep)
    assert chosen.indices.tolist() == ids
    assert chosen.weights.tolist() == weights


def test_more_samples_than_a_block():
    generator = torch.Generator().manual_seed(0)
    grads, features = torch.randn(400, 3, generator=generator), torch.randn(400, 4, generator=generator)
    targets = torch.zeros(400, dtype=torch.int64)
    chosen = craig(grads, features, targets, 0.2)
    ids, weights = reference_craig(grads, features, targets, 80)
    assert chosen.indices.tolist() == ids
    assert chosen.weights.tolist() == weights


def test_weights_count_everyone(golden, head):
    _, _, grads, targets = head
    for ratio in (0.1, 0.33, 1.0):
        chosen = craig(grads, golden["features"], targets, ratio)
        chosen.check(60)
        assert chosen.weights.sum() == 60


def test_identical_samples():
    chosen = craig(torch.ones(6, 2), torch.ones(6, 2), torch.zeros(6, dtype=torch.int64), 0.5)
    assert sorted(set(chosen.indices.tolist())) == chosen.indices.tolist()
    assert chosen.weights.sum() == 6


def test_bad_inputs(golden, head):
    _, _, grads, targets = head
    with pytest.raises(ValueError, match="`keep_ratio`"):
        craig(grads, golden["features"], targets, 1.5)
    with pytest.raises(ValueError, match="`features` to have shape"):
        craig(grads, golden["features"][:5], targets, 0.5)
