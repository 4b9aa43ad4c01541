"""The tiny task that ships with the package, and what only our own tests need of such things."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune import PruningCallback, ScoreRegistry, Selection
from lightning_prune.testing.task import (
    BATCH_SIZE,
    NUM_SAMPLES,
    Model,
    PlainModel,
    Remember,
    make_dataset,
    make_loader,
    make_trainer,
)

__all__ = [
    "BATCH_SIZE",
    "NUM_SAMPLES",
    "VARIABLE",
    "BareModel",
    "Keep",
    "Model",
    "ModelWithData",
    "PlainModel",
    "Remember",
    "ScalarModel",
    "make_dataset",
    "make_loader",
    "make_trainer",
    "registry_of",
]


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


def registry_of(trainer: L.Trainer) -> ScoreRegistry:
    return ScoreRegistry.of(trainer)
