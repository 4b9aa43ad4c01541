"""Scores by gradient norms are those of the loss that was really used, by autograd; or they are refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune import DivBS, ImportanceSampling, RePB
from lightning_prune.core.step import StepRecord, weighted_loss
from lightning_prune.methods._shared import output_grad_norm, output_grads
from tests.helpers import Model, make_loader, make_trainer, registry_of

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 3, generator=GENERATOR)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
MIXED = torch.rand(6, 3, generator=GENERATOR).softmax(1)


def step_of(logits=LOGITS, **given):
    step = StepRecord()
    step.active = True
    weighted_loss(step, torch.ones(len(logits)), logits=logits, **given)
    return step


def smooth(classes, share, num_classes=3):
    """Return the probabilities that `label_smoothing` stands for."""
    return F.one_hot(classes, num_classes) * (1 - share) + share / num_classes


def reference_norms(logits, loss):
    logits = logits.clone().requires_grad_()
    with torch.enable_grad():  # a probe has none
        (grads,) = torch.autograd.grad(loss(logits).sum(), logits)
    return grads.flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("targets", "loss"),
    [
        (CLASSES, lambda z: F.cross_entropy(z, CLASSES, reduction="none")),
        (MIXED, lambda z: F.cross_entropy(z, MIXED, reduction="none")),
        (smooth(CLASSES, 0.3), lambda z: F.cross_entropy(z, CLASSES, reduction="none", label_smoothing=0.3)),
    ],
    ids=["class ids", "mixed", "smoothed"],
)
def test_norms_are_those_of_autograd(targets, loss):
    assert torch.allclose(output_grad_norm(step_of(targets=targets), "M"), reference_norms(LOGITS, loss), atol=1e-6)


def test_a_smoothed_label_is_another_gradient():
    """What the class ids alone would tell is not the gradient of the loss."""
    logits, y = torch.tensor([[2.708, 0.0]]), torch.tensor([0])
    loss = lambda z: F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)  # noqa: E731
    right = output_grad_norm(step_of(logits, targets=smooth(y, 0.1, 2)), "M")
    assert torch.allclose(right, reference_norms(logits, loss), atol=1e-6)
    assert not torch.allclose(output_grad_norm(step_of(logits, targets=y), "M"), right, rtol=0.5)


def test_class_weights_are_part_of_the_loss():
    weight = torch.tensor([0.2, 5.0, 1.0])
    step = step_of(targets=CLASSES, sample_weight=weight[CLASSES])
    expected = reference_norms(LOGITS, lambda z: F.cross_entropy(z, CLASSES, weight=weight, reduction="none"))
    assert torch.allclose(output_grad_norm(step, "M"), expected, atol=1e-6)


def test_given_norms_come_first():
    norms = torch.arange(6.0, requires_grad=True)
    step = step_of(targets=CLASSES, grad_norm=norms)
    assert torch.equal(output_grad_norm(step, "M"), norms.detach())
    assert not output_grad_norm(step, "M").requires_grad
    step = step_of(grad_norm=norms, sample_weight=torch.full((6,), 2.0))
    assert torch.equal(output_grad_norm(step, "M"), 2 * norms.detach())


def test_the_formula_of_the_page_for_tokens():
    """A sample's loss is the mean of its unmasked tokens'."""
    logits = torch.randn(2, 4, 3, generator=GENERATOR)
    targets = torch.tensor([[0, 1, 2, 0], [1, 2, -100, -100]])
    mask = targets != -100

    def losses(z):
        return (F.cross_entropy(z.transpose(1, 2), targets, reduction="none") * mask).sum(1) / mask.sum(1)

    errors = logits.softmax(-1) - F.one_hot(targets.clamp(min=0), 3)
    norms = (errors * mask[..., None]).flatten(1).norm(dim=1) / mask.sum(1)
    assert torch.allclose(norms, reference_norms(logits, losses), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "targets", "match"),
    [
        (
            (6,),
            torch.rand(6),
            r"\(6,\) and \(6,\) torch.float32. These may be of a binary cross-entropy or of a reg.*grad_norm=",
        ),
        ((6, 1), torch.rand(6), r"\(6, 1\) and \(6,\) torch.float32. These may be of a binary cross-entropy or"),
        ((6, 1), torch.ones(6, 1), r"\(6, 1\) and \(6, 1\) torch.float32. These may be of a binary cross-entropy or"),
        ((6, 1), CLASSES, r"\(6, 1\) and \(6,\) torch.int64. These may be of a binary cross-entropy or"),
        ((6, 4, 3), torch.zeros(6, 4).long(), r"\(6, 4, 3\) and \(6, 4\) torch.int64. For sequences.*`grad_norm=`"),
        ((6, 3), torch.zeros(6, 4), r"\(6, 3\) and \(6, 4\) torch.float32"),
        ((6, 3), torch.zeros(6, 3).long(), r"\(6, 3\) and \(6, 3\) torch.int64"),
        ((6, 3), torch.ones(6, 3), r"add up to 1.*got sums from 3 to 3. For several labels a sample"),
    ],
    ids=["binary", "binary column", "both columns", "ids", "tokens", "width", "one-hot ids", "several labels"],
)
def test_what_another_loss_may_have_had_is_refused_by_name(shape, targets, match):
    step = step_of(torch.zeros(shape), targets=targets)
    with pytest.raises(ValueError, match=match) as caught:
        output_grads(step, "MyMethod")
    assert "MyMethod" in str(caught.value)


@pytest.mark.parametrize("given", ["logits", "targets"])
def test_what_is_missing_is_named(given):
    step = StepRecord()
    step.active = True
    weighted_loss(step, torch.ones(6), **{given: LOGITS})
    (missing,) = {"logits", "targets"} - {given}
    with pytest.raises(ValueError, match=f"passed no {missing}"):
        output_grads(step, "M")


class Smoothed(Model):
    """Trains on smoothed labels, and passes what ``passes`` returns; notes the true norms."""

    def __init__(self, passes):
        super().__init__()
        self.passes, self.norms = passes, {}

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        logits = self.layer(x)
        losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=0.2)
        norms = reference_norms(logits.detach(), lambda z: F.cross_entropy(z, y, reduction="none", label_smoothing=0.2))
        self.norms |= dict(zip(index.tolist(), norms.tolist(), strict=True))
        return self.weighted_loss(losses, **self.passes(logits, y, norms, x))


PASSES = {
    "soft targets": lambda z, y, norms, x: {"logits": z, "targets": smooth(y, 0.2, 2), "features": x},
    "norms": lambda z, y, norms, x: {"grad_norm": norms},
}


@pytest.mark.parametrize("passes", PASSES)
def test_importance_in_a_fit(passes):
    trainer, model = make_trainer(ImportanceSampling(smoothing=0.0), max_epochs=3), Smoothed(PASSES[passes])
    trainer.fit(model, make_loader())
    importance = registry_of(trainer).column("importance")
    for index, norm in model.norms.items():
        assert importance[index].item() == pytest.approx(norm, abs=1e-5)


class Noted(RePB):
    def on_epoch_recorded(self, registry, record):
        super().on_epoch_recorded(registry, record)
        self.noted = dict(zip(record.indices.tolist(), record.extra["grad_norm"].tolist(), strict=True))


@pytest.mark.parametrize("passes", PASSES)
def test_repb_in_a_fit(passes):
    method, model = Noted(score="grad_norm"), Smoothed(PASSES[passes])
    make_trainer(method, max_epochs=3).fit(model, make_loader())
    assert len(method.noted) > 10
    for index, norm in method.noted.items():
        assert model.norms[index] == pytest.approx(norm, abs=1e-5)


def test_divbs_takes_soft_targets():
    model = Smoothed(PASSES["soft targets"])
    make_trainer(DivBS(prune_ratio=0.5), max_epochs=2).fit(model, make_loader())
    with pytest.raises(ValueError, match="DivBS goes by, but the training step passed no logits and no targets"):
        make_trainer(DivBS(), max_epochs=2).fit(Smoothed(PASSES["norms"]), make_loader())
