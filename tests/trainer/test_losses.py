"""What the loss means in a fit: objectives with class weights, tokens, crops and several losses, pruned and not."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_prune
from lightning_prune import (
    RS2,
    BatchLossScore,
    DivBS,
    InfoBatch,
    OrderDP,
    RandomPruning,
    ScoreRegistry,
    SelectiveBackprop,
    WeightedLossMixin,
)
from lightning_prune.core.method import Method
from lightning_prune.scoring import ScoreFile, StaticPruning
from tests.helpers import Keep, Model, PlainModel, make_loader, make_trainer, registry_of

CLASS_WEIGHTS = torch.tensor([0.2, 5.0])
IGNORED = -100
recent = pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 guards on the identity of a module's tensors")


def fit(training_step, method, base=Model, **kwargs):
    class Custom(base):
        pass

    Custom.training_step = training_step
    trainer, model = make_trainer(*([] if method is None else [method]), **{"max_epochs": 3, **kwargs}), Custom()
    trainer.fit(model, make_loader(shuffle=False))
    return trainer, model


def weights_now(model):
    return registry_of(model.trainer).step.weights


def class_weighted(self, batch, batch_idx):
    return self.weighted_loss(self.losses(batch), sample_weight=CLASS_WEIGHTS[batch[1]])


def test_class_weights_train_what_they_did_where_nothing_is_pruned():
    def before(self, batch, batch_idx):
        return F.cross_entropy(self.layer(batch[0]), batch[1], weight=CLASS_WEIGHTS)

    _, plain = fit(before, None, PlainModel)
    for method in (None, Keep(1.0), Keep(1.0, weight=1.0)):
        _, model = fit(class_weighted, method)
        assert torch.allclose(model.layer.weight, plain.layer.weight, atol=1e-5)


def test_class_weights_of_a_pruned_step():
    """Each step has the value of the formula; what is recorded has no weights."""

    def step(self, batch, batch_idx):
        loss = class_weighted(self, batch, batch_idx)
        losses = torch.tensor([self.true_losses[i] for i in batch[2].tolist()])
        p, w = weights_now(self), CLASS_WEIGHTS[batch[1]]
        p = torch.ones_like(w) if p is None else p
        expected = (p * w * losses).sum() / len(losses) / ((p * w).sum() / p.sum())
        assert loss.item() == pytest.approx(expected.item())
        return loss

    trainer, model = fit(step, InfoBatch(anneal_ratio=1.0), max_epochs=5)
    assert registry_of(trainer).selection.weights is not None
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(value)


class Tagger(WeightedLossMixin, L.LightningModule):
    """Tags each of eight numbers, of which the last ones of some samples are padding."""

    def __init__(self, **given):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.given, self.means = nn.Linear(8, 16), given, {}

    def parts(self, batch):
        logits = self.layer(batch[0]).view(-1, 2, 8)
        targets = (batch[0] > 0).long()
        targets[batch[2] % 4 == 1, 3:] = IGNORED
        return logits, targets

    def training_step(self, batch, batch_idx):
        logits, targets = self.parts(batch)
        losses, mask = F.cross_entropy(logits, targets, reduction="none"), targets != IGNORED
        means = (losses * mask).sum(1) / mask.sum(1)
        self.means |= dict(zip(batch[2].tolist(), means.tolist(), strict=True))
        return self.weighted_loss(losses, mask=mask, **self.given)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PlainTagger(Tagger):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(*self.parts(batch))


def test_tokens_train_what_they_did_with_an_ignore_index():
    def run(model, *callbacks):
        make_trainer(*callbacks).fit(model, make_loader(shuffle=False))
        return model.layer.weight

    before = run(PlainTagger())
    assert torch.allclose(run(Tagger(normalize="token")), before, atol=1e-6)
    assert torch.allclose(run(Tagger(normalize="token"), Keep(1.0, weight=1.0)), before, atol=1e-6)
    assert not torch.allclose(run(Tagger()), before, atol=1e-3)


def test_the_score_of_a_sequence_is_the_mean_of_its_tokens():
    for normalize in ("sample", "token"):
        trainer, model = make_trainer(InfoBatch()), Tagger(normalize=normalize)
        trainer.fit(model, make_loader())
        for index, value in model.means.items():
            assert registry_of(trainer).losses[index].item() == pytest.approx(value)


class Padded(Tagger):
    """Forgets the mask."""

    def __init__(self, targets=None, **given):
        super().__init__(**given)
        self.targets = targets

    def training_step(self, batch, batch_idx):
        logits, targets = self.parts(batch)
        if self.targets is not None:
            targets = self.targets(targets)
        return self.weighted_loss(F.cross_entropy(logits, targets, reduction="none"), **self.given)


def told(model, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(InfoBatch(), **kwargs).fit(model, make_loader(shuffle=False))
    return [str(warning.message) for warning in caught if "are exactly 0" in str(warning.message)]


def test_padding_without_a_mask_is_noticed_once():
    (message,) = told(Padded())
    assert message.startswith("5 of the 32 losses of the first step, of shape (4, 8), are exactly 0.")
    assert '`self.weighted_loss(losses, mask=targets != ignore_index, normalize="token")`' in message


@contextmanager
def one_graph():
    """Yield a backend; its module must not break into several graphs, or be compiled anew but for a last batch."""
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield (counter := CompileCounter())
    assert not counters["graph_break"]
    assert 1 <= counter.frame_count <= 2


@recent
def test_padding_is_noticed_in_a_compiled_module_too():
    with one_graph() as backend:
        assert len(told(torch.compile(Padded(), backend=backend))) == 1


class Everything(Tagger):
    """Uses all there is."""

    def training_step(self, batch, batch_idx):
        logits, targets = self.parts(batch)
        losses, mask = F.cross_entropy(logits, targets, reduction="none"), targets != IGNORED
        norms, w = logits.detach().flatten(1).norm(dim=1), CLASS_WEIGHTS[batch[1]]
        return self.weighted_loss(
            {"a": losses, "b": losses / 2}, mask=mask, normalize="token", sample_weight=w, grad_norm=norms
        )


@recent
@pytest.mark.parametrize("weight", [None, 1.5])
def test_all_of_it_compiles_into_one_graph(weight):
    plain, compiled = Everything(), Everything()
    with one_graph() as backend:
        for model in (plain, torch.compile(compiled, backend=backend)):
            make_trainer(Keep(1.0, 0.5, 0.75, weight=weight)).fit(model, make_loader())
    assert torch.allclose(plain.layer.weight, compiled.layer.weight)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Padded(lambda targets: targets.clamp(min=0)),
        lambda: Padded(lambda targets: torch.full_like(targets, IGNORED)),
        lambda: Right(),
        lambda: Tagger(),
        lambda: Zero(),
    ],
    ids=["none ignored", "all ignored", "told that they are right", "mask", "one loss per sample"],
)
def test_what_is_no_padding_is_not_noticed(model):
    assert told(model()) == []


class Right(Padded):
    """Says that zeros are right."""

    def training_step(self, batch, batch_idx):
        losses = F.cross_entropy(*self.parts(batch), reduction="none")
        return self.weighted_loss(losses, mask=torch.ones_like(losses))


class Zero(Model):
    """A hinge loss, which is 0 where a sample is right."""

    def training_step(self, batch, batch_idx):
        return self.weighted_loss((self.losses(batch) - 0.5).relu()[:, None])


CROPS = torch.arange(1.0, 4)


def crops(self, batch, batch_idx):
    """Give three rows of each sample, of unlike losses."""
    losses = self.losses(batch)[:, None] * CROPS
    self.true_losses |= dict(zip(batch[2].tolist(), losses.detach().mean(1).tolist(), strict=True))
    return self.weighted_loss(losses.flatten(), indices=batch[2].repeat_interleave(3))


@pytest.mark.parametrize(
    "method",
    [lambda: InfoBatch(anneal_ratio=1.0), OrderDP, lambda: Keep(0.5), lambda: Keep(0.5, weight=3.0), lambda: None],
    ids=["InfoBatch", "OrderDP", "Keep", "Keep, weighted", "registry"],
)
def test_of_several_rows_of_a_sample_the_mean_is_recorded(method):
    trainer, model = fit(crops, method() or ScoreRegistry(), max_epochs=4)
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(value)


def test_several_rows_of_a_sample_train_what_their_mean_did():
    def views(self, batch, batch_idx):
        return self.weighted_loss((self.losses(batch)[:, None] * CROPS).mean(1))

    for method in (lambda: Keep(1.0, 0.5), lambda: Keep(1.0, 0.5, weight=2.0), InfoBatch):
        assert torch.allclose(fit(crops, method())[1].layer.weight, fit(views, method())[1].layer.weight, atol=1e-5)


def test_rows_that_are_masked_out_do_not_count_in_the_mean():
    def step(self, batch, batch_idx):
        losses = (self.losses(batch)[:, None] * CROPS).flatten()
        rows, ids = torch.arange(len(losses)) % 3, batch[2].repeat_interleave(3)
        mask = (rows > 0) & ((ids % 4 > 0) | (rows > 5))  # the second and the third of a sample; of some samples none
        return self.weighted_loss(losses, mask=mask, indices=ids)

    trainer, model = fit(step, Keep(1.0))
    for index, value in model.true_losses.items():
        recorded = registry_of(trainer).losses[index].item()
        assert (recorded != recorded) if index % 4 == 0 else (recorded == pytest.approx(value * 2.5))


@pytest.mark.parametrize("weight", [None, 2.0])
def test_a_multiple_of_the_batch_is_told_both_ways_to_average(weight):
    def step(self, batch, batch_idx):
        return self.weighted_loss(self.losses(batch).repeat(35))

    match = (
        r"Expected 4 losses.*got 140, 35 for each sample.*losses.view\(4, -1\)\)`.*losses.view\(35, 4\).mean\(0\)\)`"
    )
    with pytest.raises(ValueError, match=match):
        fit(step, Keep(1.0, weight=weight))


def test_several_losses_are_summed_per_sample():
    def step(self, batch, batch_idx):
        losses = self.losses(batch)
        return self.weighted_loss({"class": losses, "box": losses[:, None] * CROPS})

    def alone(self, batch, batch_idx):
        return self.weighted_loss(3 * self.losses(batch))

    trainer, model = fit(step, InfoBatch())
    assert torch.allclose(model.layer.weight, fit(alone, InfoBatch())[1].layer.weight, atol=1e-5)
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(3 * value)


SCORES = torch.arange(40.0)
OFFERED = [name for name in lightning_prune.__all__ if getattr(getattr(lightning_prune, name), "for_any_module", None)]


@pytest.mark.parametrize(
    "method",
    [RandomPruning, RS2, lambda: BatchLossScore(base=OrderDP()), lambda: StaticPruning(SCORES)],
    ids=["RandomPruning", "RS2", "BatchLossScore", "StaticPruning"],
)
def test_modules_that_cannot_be_edited(method):
    trainer, model = make_trainer(method()), PlainModel()
    trainer.fit(model, make_loader())
    assert sum(model.epoch_batches(4)) < 40
    assert registry_of(trainer).saved_fraction > 0


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_for_any_module_works(name):
    make_trainer(eval(getattr(lightning_prune, name).for_any_module, vars(lightning_prune))).fit(
        PlainModel(), make_loader()
    )


@pytest.mark.parametrize(
    "method",
    [
        InfoBatch,
        OrderDP,
        DivBS,
        SelectiveBackprop,
        lambda: RandomPruning(rescale=True),
        lambda: BatchLossScore(base=InfoBatch()),
        lambda: StaticPruning(ScoreFile(SCORES, {}, {"weights": SCORES + 1}), prune_ratio=0.5),
        ScoreRegistry,
    ],
    ids=["InfoBatch", "OrderDP", "DivBS", "SelectiveBackprop", "rescale", "base", "static weights", "registry"],
)
def test_refusals_say_what_works_without_the_mixin(method):
    with pytest.raises(MisconfigurationException, match="WeightedLossMixin") as caught:
        make_trainer(method()).fit(PlainModel(), make_loader())
    for offered in ("`BatchLossScore(base=OrderDP())`", "`RandomPruning()`", "`RS2()`"):
        assert offered in str(caught.value)


def test_batch_losses_are_not_offered_where_the_step_returns_none():
    class Manual(PlainModel):
        automatic_optimization = False

    with pytest.raises(MisconfigurationException, match=r"cannot edit is pruned as it is by `RS2\(\)` or `RandomPr"):
        make_trainer(InfoBatch()).fit(Manual(), make_loader())


def test_what_is_offered_says_so_itself():
    assert set(OFFERED) == {"BatchLossScore", "RandomPruning", "RS2"}
    for name in OFFERED:
        method = getattr(lightning_prune, name)
        assert issubclass(method, Method)
        assert not method.needs_mixin
