"""A small CNN on scikit-learn's digits, as a LightningModule and a LightningDataModule."""

from __future__ import annotations

from abc import ABC
from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import WeightedLossMixin


@final
class DigitsData(L.LightningDataModule):
    """Digits, 1,437 to train on and 360 to test on.

    Args:
        batch_size: Samples in a batch.
        split_seed: Seed of the split into training and test images.
    """

    def __init__(self, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.split_seed = split_seed

    def setup(self, stage: str) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.split_seed))
        self.train, self.held_out = (TensorDataset(images[ids], labels[ids]) for ids in (order[360:], order[:360]))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, 360)

    test_dataloader = val_dataloader


class DigitsClassifier(WeightedLossMixin, L.LightningModule, ABC):
    """Base of the models: features of an image, a linear layer on them, and a OneCycle schedule.

    Args:
        body: From images ``(B, 1, 8, 8)`` to features ``(B, D)``.
        head: From features to logits ``(B, 10)``.
        lr: Highest learning rate.
    """

    def __init__(self, body: nn.Module, head: nn.Module, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.body = body
        self.head = head
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        features = self.body(images)
        logits = self.head(features)
        losses = F.cross_entropy(logits, targets, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=targets, features=features)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluate("val", batch)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluate("test", batch)

    def evaluate(self, stage: str, batch: list[Tensor]) -> None:
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log(f"{stage}_loss", F.cross_entropy(logits, targets))
        self.log(f"{stage}_accuracy", self.accuracy, prog_bar=stage == "val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@final
class DigitsModel(DigitsClassifier):
    """Two convolutions and a linear layer.

    Args:
        width: Channels of the first convolution.
        lr: Highest learning rate.
    """

    def __init__(self, width: int = 32, lr: float = 0.02) -> None:
        body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(body, nn.Linear(32 * width, 10), lr)
