"""A tiny task whose samples carry their own index, and what a run on it leaves behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.trainer.mixin import WeightedLossMixin
from lightning_prune.trainer.registry import ScoreRegistry

NUM_SAMPLES, BATCH_SIZE = 40, 4

LIGHTNING_S_ADVICE = (
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",
    "ignore:.*(callbacks used to create the checkpoint|The dirpath has changed|Checkpoint directory)",
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:.*lr_scheduler.step.*:UserWarning",
)
"""Filters for what Lightning says of runs as small as these; anything else is the method's."""

Schedule = Callable[[Any, Any], Any]
"""Makes what `configure_optimizers` returns from a module and its optimizer."""


def make_dataset(num_samples: int = NUM_SAMPLES) -> TensorDataset:
    """Return samples ``(x, y, index)``; the label follows from x, with some noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, 8, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(num_samples, generator=generator) > 0).long()
    return TensorDataset(x, y, torch.arange(num_samples))


def make_loader(num_samples: int = NUM_SAMPLES, batch_size: int = BATCH_SIZE, **kwargs: Any) -> DataLoader[Any]:
    """Return a loader of the task, which shuffles unless told otherwise."""
    return DataLoader(make_dataset(num_samples), batch_size, **{"shuffle": True, **kwargs})


class TaskModel(L.LightningModule, ABC):
    """Base of the task's models: a linear classifier that notes what it trained and when it validated.

    Args:
        schedule: Makes the learning-rate schedule. None: there is none.
        dropout: Probability of dropping an input.

    Attributes:
        seen: Epoch and sample ids of each training step.
        true_losses: Last loss of each sample in training, by id.
        validated: Epoch and number of batches at each validation.
        lrs: Learning rate after each optimizer step.
        outputs: What the last forward pass has for ``weighted_loss``.
    """

    def __init__(self, schedule: Schedule | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = torch.nn.Linear(8, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(2, 8, generator=generator))
            self.layer.bias.zero_()
        self.dropout = torch.nn.Dropout(dropout)
        self.schedule = schedule
        self.seen: list[tuple[int, list[int]]] = []
        self.true_losses: dict[int, float] = {}
        self.validated: list[tuple[int, int]] = []
        self.lrs: list[float] = []
        self.outputs: dict[str, Any] = {}

    def losses(self, batch: Any) -> Tensor:
        """Return the losses ``(B,)`` of a batch; in training, note them."""
        x, y, index = batch
        logits = self.layer(self.dropout(x))
        losses = F.cross_entropy(logits, y, reduction="none")
        self.outputs = {"logits": logits.detach(), "targets": y, "features": x}
        if self.training:  # else a method only asks for losses
            self.seen.append((self.current_epoch, index.tolist()))
            self.true_losses |= dict(zip(index.tolist(), losses.detach().float().tolist(), strict=True))
        return losses

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss to train on."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Note the validation, and log its loss."""
        if batch_idx == 0:
            self.validated.append((self.current_epoch, self.trainer.fit_loop.batch_idx + 1))
        x, y, _ = batch
        self.log("val_loss", F.cross_entropy(self.layer(x), y))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and note the learning rate."""
        super().optimizer_step(*args, **kwargs)
        self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        """Return SGD with momentum, and the schedule."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return optimizer if self.schedule is None else self.schedule(self, optimizer)

    def epoch_ids(self, epoch: int) -> list[int]:
        """Return the ids that an epoch trained, in order."""
        return [i for e, ids in self.seen if e == epoch for i in ids]

    def epoch_batches(self, epochs: int) -> list[int]:
        """Return how many batches each of the first epochs trained."""
        return [sum(e == epoch for e, _ in self.seen) for epoch in range(epochs)]


@final
class PlainModel(TaskModel):
    """The classifier without the mixin: its loss is a plain mean."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss."""
        return self.losses(batch).mean()


class WeightedModel(WeightedLossMixin, TaskModel, ABC):
    """Base of the classifiers with the mixin."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted loss, and hand on all that a method may ask for."""
        losses = self.losses(batch)
        return self.weighted_loss(losses, **self.outputs)


@final
class Model(WeightedModel):
    """What methods are run on."""


@final
class ToldModel(WeightedModel):
    """Reports one and the same loss for some samples; what is trained stays finite.

    Args:
        report: The loss reported.
        where: Mask ``(n,)`` of the samples that it is reported for.
    """

    def __init__(self, report: float, where: Tensor) -> None:
        super().__init__()
        self.report, self.where = report, where

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted loss of what is reported, or 0 where that is not finite."""
        real = self.losses(batch)
        loss = self.weighted_loss(torch.where(self.where[batch[2]], self.report, real), **self.outputs)
        return loss if loss.isfinite() else 0 * real.sum()


@final
class ScriptedModel(WeightedModel):
    """Its losses depend on the sample and the epoch, not on what was learnt: runs can be compared bit for bit.

    Args:
        num_samples: Length of the dataset.

    Attributes:
        selections: Ids and weights of each epoch's selection.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.selections: list[tuple[Tensor, Tensor | None]] = []

    def losses(self, batch: Any) -> Tensor:
        """Return the script's losses, and put its logits and features among the outputs."""
        real = super().losses(batch)
        generator = torch.Generator().manual_seed(self.current_epoch)
        values = torch.rand(self.num_samples, 4, generator=generator)[batch[2]]
        self.outputs |= {"logits": values[:, :2], "features": values[:, :3]}
        return values[:, 3] + 0 * real

    def on_train_epoch_start(self) -> None:
        """Note the selection."""
        selection = ScoreRegistry.of(self.trainer).selection
        assert selection is not None
        self.selections.append((selection.indices, selection.weights))


def one_cycle(module: L.LightningModule, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a step-interval schedule over the whole run."""
    scheduler = OneCycleLR(optimizer, 0.3, total_steps=int(module.trainer.estimated_stepping_batches) + 1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """Return a quiet Trainer of four epochs on the CPU."""
    defaults: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


@final
class Remember(Logger):
    """Keeps what is logged under ``prune/``, with the step."""

    name = version = "remember"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep a line."""
        if values := {key: value for key, value in metrics.items() if key.startswith("prune/")}:
            self.lines.append((step, values))


@final
@dataclass
class Outcome:
    """What a run was and left behind, to be compared with another's.

    Attributes:
        seen: Epoch and sample ids of each step.
        weights: The model's state.
        momentum: The optimizer's buffers.
        lrs: Learning rate after each step.
        table: The per-sample state.
        selection: Ids of the last selection.
        selection_weights: Its weights, or None.
        saved: Share of the sample-steps that was saved.
        logged: What was logged, as text: a float's is exact, and NaN is NaN.
        selections: Each epoch's ids and weights, where the model noted them.
    """

    seen: list[tuple[int, list[int]]]
    weights: dict[str, Tensor]
    momentum: list[Tensor]
    lrs: list[float]
    table: dict[str, Tensor]
    selection: Tensor
    selection_weights: Tensor | None
    saved: float
    logged: list[str]
    selections: list[tuple[Tensor, Tensor | None]]

    @classmethod
    def of(cls, trainer: L.Trainer, model: TaskModel) -> Outcome:
        """Return that of a finished fit."""
        registry = ScoreRegistry.of(trainer)
        selection = registry.selection
        assert selection is not None
        states = [state for optimizer in trainer.optimizers for state in optimizer.state_dict()["state"].values()]
        return cls(
            seen=model.seen,
            weights={name: value.clone() for name, value in model.state_dict().items()},
            momentum=[state["momentum_buffer"] for state in states],
            lrs=model.lrs,
            table=registry.to_dict(),
            selection=selection.indices,
            selection_weights=selection.weights,
            saved=registry.saved_fraction,
            logged=[repr(line) for line in trainer.logger.lines] if isinstance(trainer.logger, Remember) else [],
            selections=getattr(model, "selections", []),
        )

    def ids(self, epoch: int) -> list[int]:
        """Return the ids that an epoch trained, in order."""
        return [i for e, ids in self.seen if e == epoch for i in ids]


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors, or two absent ones, are equal; NaN equals NaN."""
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first.nan_to_num(-1.0), second.nan_to_num(-1.0))


def assert_same_state(first: Outcome, second: Outcome) -> None:
    """Assert that two runs ended alike, bit for bit: weights, per-sample state, what was saved."""
    for part in ("weights", "table"):
        one, other = getattr(first, part), getattr(second, part)
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert equal(values, other[name]), f"{part}: {name}"
    assert torch.equal(first.selection, second.selection)
    assert equal(first.selection_weights, second.selection_weights)
    assert first.saved == second.saved


def assert_resumed(whole: Outcome, resumed: Outcome) -> None:
    """Assert that a resumed run was the end of the whole one, bit for bit: order, schedule, log, and how it ended."""
    assert resumed.seen, "nothing was trained after the resume"
    assert whole.seen[-len(resumed.seen) :] == resumed.seen
    assert whole.lrs[-len(resumed.lrs) :] == resumed.lrs
    assert bool(whole.logged) == bool(resumed.logged), "nothing was logged after the resume"
    assert whole.logged[len(whole.logged) - len(resumed.logged) :] == resumed.logged
    assert len(whole.momentum) == len(resumed.momentum)
    assert all(map(torch.equal, whole.momentum, resumed.momentum))
    assert_same_state(whole, resumed)
