"""A tiny task whose samples carry their own index, so that every claim about identity can be checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PruningCallback, ScoreRegistry, Selection, WeightedLossMixin

NUM_SAMPLES, BATCH_SIZE = 40, 4


def make_dataset(num_samples: int = NUM_SAMPLES) -> TensorDataset:
    """Return samples ``(x, y, index)``; the label follows from x, with some noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, 8, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(num_samples, generator=generator) > 0).long()
    return TensorDataset(x, y, torch.arange(num_samples))


def make_loader(num_samples: int = NUM_SAMPLES, batch_size: int = BATCH_SIZE, **kwargs: Any) -> DataLoader:
    return DataLoader(make_dataset(num_samples), batch_size, **{"shuffle": True, **kwargs})


class PlainModel(L.LightningModule):
    """A linear classifier that notes what it trained and when it validated."""

    def __init__(self, schedule: Callable[[Any, Any], Any] | None = None, dropout: float = 0.0) -> None:
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
        self.outputs: dict[str, Tensor] = {}

    def losses(self, batch: Any) -> Tensor:
        x, y, index = batch
        logits = self.layer(self.dropout(x))
        losses = F.cross_entropy(logits, y, reduction="none")
        self.outputs = {"logits": logits.detach(), "targets": y, "features": x}
        if self.training:  # else a method only asks for losses
            self.seen.append((self.current_epoch, index.tolist()))
            self.true_losses |= dict(zip(index.tolist(), losses.detach().float().tolist(), strict=True))
        return losses

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.losses(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validated.append((self.current_epoch, self.trainer.fit_loop.batch_idx + 1))
        x, y, _ = batch
        self.log("val_loss", F.cross_entropy(self.layer(x), y))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return optimizer if self.schedule is None else self.schedule(self, optimizer)

    def epoch_ids(self, epoch: int) -> list[int]:
        return [i for e, ids in self.seen if e == epoch for i in ids]

    def epoch_batches(self, epochs: int) -> list[int]:
        return [sum(e == epoch for e, _ in self.seen) for epoch in range(epochs)]


class Model(WeightedLossMixin, PlainModel):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        return self.weighted_loss(losses, **self.outputs)


class BareModel(Model):
    """Tells `weighted_loss` the losses only."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weighted_loss(self.losses(batch))


class ModelWithData(Model):
    """For configurations: brings its loaders."""

    def train_dataloader(self) -> DataLoader:
        return make_loader()

    def val_dataloader(self) -> DataLoader:
        return make_loader(8)


class ScalarModel(ModelWithData):
    """Makes the usual mistake."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weighted_loss(self.losses(batch).mean())


class Keep(PruningCallback):
    """Keeps the given share of the samples, the ones with the highest losses, epoch by epoch."""

    def __init__(self, *shares: float, weight: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shares = shares
        self.weight = weight

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        k = round(self.shares[epoch % len(self.shares)] * registry.num_samples)
        order = registry.scores.nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)
        weights = None if self.weight is None else torch.full((k,), self.weight)
        return Selection(order[:k].sort().values, weights)

    def __repr__(self) -> str:
        return f"Keep{self.shares}"


VARIABLE = (1.0, 0.5, 1.0, 0.75)
"""Shares of 40 samples: epochs of 40, 20, 40 and 30 samples, that is 10, 5, 10 and 8 batches."""


def make_trainer(*callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    defaults = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


class Remember(Logger):
    """Keeps what is logged under ``prune/``, with the step."""

    name = version = "remember"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if values := {key: value for key, value in metrics.items() if key.startswith("prune/")}:
            self.lines.append((step, values))


def registry_of(trainer: L.Trainer) -> ScoreRegistry:
    return ScoreRegistry.of(trainer)
