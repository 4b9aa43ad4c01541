"""`weighted_loss`: its value, what it records, and what it refuses; in every precision and kind of optimization."""

from __future__ import annotations

import copy
import pickle

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_prune.core.losses import per_sample_losses
from lightning_prune.core.step import StepRecord
from lightning_prune.trainer.mixin import WeightedLossMixin
from tests.helpers import Keep, Model, PlainModel, make_loader, make_trainer, registry_of


def test_is_a_plain_mean_without_a_callback():
    losses = torch.rand(7, 3)
    assert torch.equal(WeightedLossMixin().weighted_loss(losses), losses.mean())


def reference_per_sample(losses, mask):
    means, present = [], []
    for row, keep in zip(losses.flatten(1).tolist(), mask.flatten(1).tolist(), strict=True):
        kept = [value for value, k in zip(row, keep, strict=True) if k]
        means.append(sum(kept) / len(kept) if kept else 0.0)
        present.append(bool(kept))
    return means, present


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 3)])
def test_mask_against_a_loop(shape):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.5
    mask[2] = False
    values, present = per_sample_losses(losses, mask)
    expected, expected_present = reference_per_sample(losses, mask)
    assert values.tolist() == pytest.approx(expected)
    assert present.tolist() == expected_present


def test_a_method_that_needs_no_losses_needs_no_mixin():
    class Free(Keep):
        needs_mixin = False

    trainer, model = make_trainer(Free(0.5)), PlainModel()
    trainer.fit(model, make_loader())
    assert model.epoch_batches(4) == [5] * 4
    assert registry_of(trainer).losses.isnan().all()


def test_masked_nan_does_not_leak():
    losses = torch.tensor([[1.0, float("nan")], [2.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    loss = WeightedLossMixin().weighted_loss(losses, mask=mask)
    loss.backward()
    assert loss.item() == 2.0
    assert losses.grad.tolist() == [[0.5, 0.0], [0.25, 0.25]]


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        (torch.tensor(1.0), ValueError, 'reduction="none"'),
        (torch.tensor([1, 2]), TypeError, "floating-point tensor"),
        ([1.0, 2.0], TypeError, "got list"),
    ],
    ids=["scalar", "integers", "list"],
)
def test_bad_losses(losses, error, match):
    with pytest.raises(error, match=match):
        WeightedLossMixin().weighted_loss(losses)


def test_bad_mask():
    with pytest.raises(ValueError, match=r"`mask` to have the shape of `losses`, \(3, 2\)"):
        WeightedLossMixin().weighted_loss(torch.rand(3, 2), mask=torch.ones(3))


def fit(training_step, weight=3.0, loader=None, **kwargs):
    class Custom(Model):
        pass

    Custom.training_step = training_step
    trainer, model = make_trainer(Keep(0.5, weight=weight), max_epochs=2, **kwargs), Custom()
    trainer.fit(model, loader or make_loader())
    return trainer, model


def test_scalar_loss_in_a_step_says_what_to_write():
    with pytest.raises(ValueError, match='reduction="none"'):
        fit(lambda self, batch, batch_idx: self.weighted_loss(self.losses(batch).mean()))


@pytest.mark.parametrize("weight", [None, 2.0])
def test_wrong_length_says_what_to_write(weight):
    with pytest.raises(ValueError, match="Expected 4 losses.*but got 3"):
        fit(lambda self, batch, batch_idx: self.weighted_loss(self.losses(batch)[:3]), weight)


def test_never_called_says_so():
    with pytest.raises(RuntimeError, match=r"to call `self.weighted_loss\(losses\)`, but it never did"):
        fit(lambda self, batch, batch_idx: self.losses(batch).mean())


def test_never_called_says_so_under_manual_optimization():
    class Manual(Model):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.losses(batch)

    with pytest.raises(RuntimeError, match="but it never did"):
        make_trainer(Keep(0.5)).fit(Manual(), make_loader())


def test_value_is_the_sum_over_the_batch_size():
    def step(self, batch, batch_idx):
        losses = self.losses(batch)
        loss = self.weighted_loss(losses)
        assert loss.item() == pytest.approx((3.0 * losses).sum().item() / len(losses))
        return loss

    fit(step)


def test_several_calls_all_weigh_and_the_first_that_records_counts():
    def step(self, batch, batch_idx):
        losses = self.losses(batch)
        extra = self.weighted_loss(torch.ones_like(losses), record=False)
        assert extra.item() == 3.0
        return self.weighted_loss(losses) + 0 * self.weighted_loss(losses * 100) + extra

    trainer, model = fit(step)
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_samples_are_not_recorded(dtype):
    def step(self, batch, batch_idx):
        losses = torch.stack([self.losses(batch)] * 3, dim=1).to(dtype)
        mask = torch.ones_like(losses)
        mask[batch[2] % 4 == 0] = 0
        return self.weighted_loss(losses, mask=mask)

    trainer, model = fit(step)
    for index, value in model.true_losses.items():
        recorded = registry_of(trainer).losses[index].item()
        assert (recorded != recorded) if index % 4 == 0 else (recorded == pytest.approx(value, rel=1e-2))


class TwoOptimizers(Model):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.step_with(first, self.weighted_loss(self.losses(batch)))
        other = F.cross_entropy(self.other(batch[0]), batch[1], reduction="none")
        self.step_with(second, self.weighted_loss(other, record=False))

    def step_with(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.layer, self.other)]


def test_two_optimizers_under_manual_optimization():
    trainer, model = make_trainer(Keep(1.0, 0.5), max_epochs=2), TwoOptimizers()
    trainer.fit(model, make_loader())
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(value)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    trainer, model = fit(lambda self, b, i: self.weighted_loss(self.losses(cast(self, b))), 1.5, precision=precision)
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(value, rel=1e-6)


def cast(module, batch):
    return batch[0].to(module.dtype), *batch[1:]


def test_dtype_of_the_value_is_that_of_the_losses():
    losses = []

    def step(self, batch, batch_idx):
        loss = self.weighted_loss(self.losses(batch).bfloat16())
        losses.append(loss.dtype)
        return loss

    fit(step)
    assert set(losses) == {torch.bfloat16}


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 guards on the identity of a module's tensors")
def test_compiles_into_one_graph_without_breaks():
    from torch._dynamo.testing import CompileCounter

    class Compiled(Model):
        def __init__(self):
            super().__init__()
            self.counter = CompileCounter()
            self.fast = torch.compile(self.traced, backend=self.counter, fullgraph=True)

        def traced(self, x, y):
            return self.weighted_loss(F.cross_entropy(self.layer(x), y, reduction="none"))

        def training_step(self, batch, batch_idx):
            self.losses(batch)
            return self.fast(batch[0], batch[1])

    torch._dynamo.reset()
    trainer, model = make_trainer(Keep(1.0, 0.5, 0.75, weight=1.5), max_epochs=5), Compiled()
    trainer.fit(model, make_loader())
    for index, value in model.true_losses.items():
        assert registry_of(trainer).losses[index].item() == pytest.approx(value, rel=1e-5)
    assert model.counter.frame_count <= 2  # one, and one with a dynamic batch size for the short last batches


class Bare(WeightedLossMixin, L.LightningModule):
    """Nothing but a loss in the step, so that the whole of it can be traced."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        return self.weighted_loss(F.cross_entropy(self.layer(batch[0]), batch[1], reduction="none"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 guards on the identity of a module's tensors")
def test_whole_module_compiles_without_breaks():
    from torch._dynamo.testing import CompileCounter
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    models, counter = (Bare(), Bare()), CompileCounter()
    for given in (models[0], torch.compile(models[1], backend=counter)):
        make_trainer(Keep(1.0, 0.5, 0.75, weight=1.5), max_epochs=5).fit(given, make_loader())
    assert torch.allclose(models[0].layer.weight, models[1].layer.weight)
    assert not counters["graph_break"]
    assert 1 <= counter.frame_count <= 2


def test_step_record_is_not_copied_with_the_module():
    step = StepRecord(registry="anything")
    step.active = True
    for copied in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert not copied.active
        assert copied.registry is None


def test_mixin_leaves_a_module_usable_alone():
    plain, mixed = PlainModel(), Model()
    for model in (plain, mixed):
        make_trainer(max_epochs=2).fit(model, make_loader(shuffle=False))
    assert torch.equal(plain.layer.weight, mixed.layer.weight)
