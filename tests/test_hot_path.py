"""What a step may not do: synchronise, communicate, loop over samples, or copy more than one row."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune import InfoBatch, RandomPruning, ScoreRegistry
from lightning_prune.trainer.mixin import WeightedLossMixin
from tests.helpers import Keep, Model, make_loader, make_trainer

SYNCHRONISING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "_to_cpu", "masked_select", "unique")


class Recorder(TorchDispatchMode):
    """Notes each operator that runs under it."""

    def __init__(self):
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


class Watched(Model):
    """Runs our part of each step, and nothing else, under the recorder."""

    def __init__(self):
        super().__init__()
        self.recorder = Recorder()
        self.starts = self.ends = 0

    def losses(self, batch):
        x, y, _ = batch
        return torch.nn.functional.cross_entropy(self.layer(x), y, reduction="none")

    def weighted_loss(self, losses, **kwargs):
        with self.recorder:
            return super().weighted_loss(losses, **kwargs)


class WatchedRegistry(ScoreRegistry):
    def on_train_batch_start(self, trainer, pl_module, *args):
        pl_module.starts += 1
        with pl_module.recorder:
            super().on_train_batch_start(trainer, pl_module, *args)

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.ends += 1
        with pl_module.recorder:
            super().on_train_batch_end(trainer, pl_module, *args)


@pytest.mark.parametrize(
    "callback", [Keep(0.5, weight=2.0), Keep(0.5), InfoBatch(), RandomPruning(0.5, rescale=True)], ids=repr
)
def test_a_step_neither_synchronises_nor_copies_twice(callback):
    model = Watched()
    make_trainer(WatchedRegistry(), callback, max_epochs=3).fit(model, make_loader())
    ops = model.recorder.ops
    assert model.starts == model.ends > 0
    assert not [op for op in ops if any(name in op for name in SYNCHRONISING)]
    assert sum("copy" in op for op in ops) == model.ends  # one record a batch
    assert not [op for op in ops if "index" in op or "scatter" in op or "gather" in op]  # weights by slice


@pytest.mark.parametrize("method", ["item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"])
def test_no_tensor_is_read_during_a_step(method, monkeypatch):
    """The same, from the side of the tensor: reading a value in our code fails the run."""
    inside = []
    real = getattr(torch.Tensor, method)

    def guarded(self, *args, **kwargs):
        assert not inside, f"Tensor.{method} was called in a step"
        return real(self, *args, **kwargs)

    def guard(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            inside.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                inside.pop()

        monkeypatch.setattr(owner, name, wrapped)

    monkeypatch.setattr(torch.Tensor, method, guarded)
    for owner, name in (
        (ScoreRegistry, "on_train_batch_start"),
        (ScoreRegistry, "on_train_batch_end"),
        (WeightedLossMixin, "weighted_loss"),
    ):
        guard(owner, name)
    make_trainer(InfoBatch(), max_epochs=2).fit(Model(), make_loader())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_on_a_gpu():
    class Strict(Model):
        def losses(self, batch):
            x, y, _ = batch
            return torch.nn.functional.cross_entropy(self.layer(x), y, reduction="none")

        def training_step(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("error")
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *args):
            torch.cuda.set_sync_debug_mode("default")

    make_trainer(InfoBatch(), max_epochs=3, accelerator="gpu", devices=1).fit(Strict(), make_loader())
