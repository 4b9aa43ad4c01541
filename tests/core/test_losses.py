"""What the loss means: each mean against the formula that it stands for, pruned and not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune.core.losses import total_losses, weighted_mean
from lightning_prune.core.step import StepRecord, weighted_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(64, 5, generator=GENERATOR)
CLASSES = torch.randint(5, (64,), generator=GENERATOR)
CLASS_WEIGHTS = torch.tensor([0.2, 5.0, 1.0, 0.0, 3.0])
TOKENS = torch.randn(4, 5, 10, generator=GENERATOR)
TOKEN_IDS = torch.randint(5, (4, 10), generator=GENERATOR)
TOKEN_IDS[:2, 3:] = -100
PRUNING = torch.tensor([1.0, 2.0, 1.0, 4.0])


def active(weights=None):
    step = StepRecord()
    step.active, step.weights = True, weights
    return step


@pytest.mark.parametrize("step", [None, StepRecord(), active(), active(torch.ones(64))], ids=["none", "out", "in", "1"])
def test_class_weights_are_normalised_as_torch_does(step):
    losses = F.cross_entropy(LOGITS, CLASSES, reduction="none")
    value = weighted_loss(step, losses, sample_weight=CLASS_WEIGHTS[CLASSES])
    assert torch.allclose(value, F.cross_entropy(LOGITS, CLASSES, weight=CLASS_WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize("step", [None, active(), active(torch.ones(4))], ids=["none", "in", "1"])
def test_tokens_are_averaged_as_torch_does_with_an_ignore_index(step):
    losses = F.cross_entropy(TOKENS, TOKEN_IDS, reduction="none")
    value = weighted_loss(step, losses, mask=TOKEN_IDS != -100, normalize="token")
    assert torch.allclose(value, F.cross_entropy(TOKENS, TOKEN_IDS), rtol=1e-6)


def test_one_loss_per_sample_with_an_ignore_index():
    targets = CLASSES.where(CLASSES != 2, -100)
    losses = F.cross_entropy(LOGITS, targets, reduction="none")
    value = weighted_loss(None, losses, mask=targets != -100, normalize="token")
    assert torch.allclose(value, F.cross_entropy(LOGITS, targets), rtol=1e-6)


@pytest.mark.parametrize("weights", [None, PRUNING], ids=["all", "pruned"])
@pytest.mark.parametrize("normalize", ["sample", "token"])
@pytest.mark.parametrize("sample_weight", [None, torch.tensor([0.5, 3.0, 0.0, 1.0])], ids=["plain", "weighted"])
def test_every_mean_against_a_loop(normalize, sample_weight, weights):
    losses, mask = F.cross_entropy(TOKENS, TOKEN_IDS, reduction="none"), TOKEN_IDS != -100
    p = [1.0] * 4 if weights is None else weights.tolist()
    w = [1.0] * 4 if sample_weight is None else sample_weight.tolist()
    total = units = stands_for = weighted = 0.0
    for i in range(4):
        kept = [float(loss) for loss, counts in zip(losses[i], mask[i], strict=True) if counts]
        unit = len(kept) if normalize == "token" else 1
        total += p[i] * w[i] * unit * sum(kept) / len(kept)
        units += unit
        stands_for += p[i] * unit
        weighted += p[i] * w[i] * unit
    step = active(weights)
    value = weighted_loss(step, losses, mask=mask, normalize=normalize, sample_weight=sample_weight)
    assert value.item() == pytest.approx(total / units / (weighted / stands_for))
    assert step.losses.tolist() == pytest.approx(
        [float(row[keep].mean()) for row, keep in zip(losses, mask, strict=True)]
    )


def test_tokens_of_pruned_samples_are_divided_by_the_number_of_tokens():
    losses, mask = F.cross_entropy(TOKENS, TOKEN_IDS, reduction="none"), TOKEN_IDS != -100
    value = weighted_loss(active(PRUNING), losses, mask=mask, normalize="token")
    assert torch.allclose(value, (PRUNING[:, None] * losses * mask).sum() / mask.sum())


def test_a_pruned_epoch_with_class_weights_adds_up_to_the_full_one():
    """Half of the easy, light class is left out, the rest weighs 2: the steps' sum stays, by a mean over the data.

    By the mean over what is left, ``w.sum()``, it would be 0.63 of it.
    """
    weight = torch.tensor([0.2, 5.0])
    classes = (torch.arange(20_000) % 10 == 0).long()
    losses = torch.rand(20_000, generator=GENERATOR) + classes

    def epoch(ids, pruning, naive=False):
        sums = []
        for batch in ids[torch.randperm(len(ids), generator=GENERATOR)].split(100):
            w, p = weight[classes[batch]], None if pruning is None else pruning[batch]
            sums.append((p * w * losses[batch]).sum() / w.sum() if naive else weighted_mean(losses[batch], p, w))
        return float(sum(sums))

    left_out = (classes == 0) & (torch.rand(20_000, generator=GENERATOR) < 0.5)
    kept = (~left_out).nonzero().flatten()
    pruning = 2.0 - classes
    full = epoch(torch.arange(20_000), None)
    assert epoch(kept, pruning) == pytest.approx(full, rel=0.03)
    assert epoch(kept, pruning, naive=True) == pytest.approx(0.63 * full, rel=0.03)


@pytest.mark.parametrize("weights", [None, PRUNING, torch.zeros(4)], ids=["all", "pruned", "nothing"])
@pytest.mark.parametrize(
    "given",
    [
        {"sample_weight": torch.zeros(4)},
        {"mask": torch.zeros(4, 3), "normalize": "token"},
        {"mask": torch.zeros(4, 3), "normalize": "token", "sample_weight": torch.zeros(4)},
    ],
    ids=["weights", "mask", "both"],
)
def test_nothing_that_counts_is_zero_with_a_finite_gradient(given, weights):
    losses = torch.ones(4, 3, requires_grad=True)
    value = weighted_loss(active(weights), losses, **given)
    value.backward()
    assert value == 0
    assert torch.equal(losses.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_value_has_the_dtype_of_the_losses(dtype):
    losses = torch.ones(4, 3, dtype=dtype)
    for given in ({"sample_weight": PRUNING}, {"mask": torch.ones(4, 3), "normalize": "token"}):
        for weights in (None, PRUNING):
            assert weighted_loss(active(weights), losses, **given).dtype == dtype


def test_the_plain_mean_is_exact():
    losses = torch.rand(7, 3, generator=GENERATOR)
    for step in (None, StepRecord(), active()):
        assert torch.equal(weighted_loss(step, losses), losses.mean())
        assert torch.equal(weighted_loss(step, losses, normalize="token"), losses.mean())


def test_a_mapping_is_summed_per_sample():
    """Elementwise where shapes agree, so that a mask applies; else by the means per sample."""
    parts = {"class": torch.tensor([[1.0, 3.0], [5.0, 7.0]]), "box": torch.tensor([10.0, 20.0])}
    assert total_losses(parts).tolist() == [12.0, 26.0]
    alike = {"a": parts["class"], "b": 2 * parts["class"]}
    assert torch.equal(total_losses(alike), 3 * parts["class"])
    step = active(torch.tensor([1.0, 3.0]))
    assert weighted_loss(step, parts) == (12 + 3 * 26) / 2
    assert step.losses.tolist() == [12.0, 26.0]
    assert weighted_loss(active(), alike, mask=torch.tensor([[1, 0], [1, 1]])) == (3 + 18) / 2


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        ({"class": torch.tensor(1.0), "box": torch.rand(2)}, ValueError, r"scalars: \['class'\].*run it on each image"),
        ({"class": torch.rand(3), "box": torch.rand(2)}, ValueError, r"shapes \{'class': \(3,\), 'box': \(2,\)\}"),
        ({"class": torch.tensor([1, 2])}, TypeError, r"`losses\['class'\]` to be a floating-point tensor.*torch.int64"),
        ({}, ValueError, "at least one part"),
        (3.0, TypeError, "but got float"),
    ],
    ids=["scalar", "lengths", "integers", "empty", "number"],
)
def test_what_cannot_be_summed(losses, error, match):
    with pytest.raises(error, match=match):
        weighted_loss(None, losses)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"sample_weight": torch.ones(2)},
            r"`sample_weight` \(B,\), one for each of 3 samples, but got \(2,\).*\[targets\]",
        ),
        ({"sample_weight": 2.0}, r"`sample_weight` \(B,\).*but got float"),
        ({"grad_norm": torch.ones(3, 2)}, r"`grad_norm` \(B,\), one for each of 3 samples, but got \(3, 2\)"),
        ({"normalize": "batch"}, r"`normalize` to be one of \['sample', 'token'\], but got 'batch'"),
    ],
    ids=["classes", "number", "norms", "normalize"],
)
def test_arguments_that_do_not_fit(given, match):
    with pytest.raises(ValueError, match=match):
        weighted_loss(None, torch.ones(3), **given)
