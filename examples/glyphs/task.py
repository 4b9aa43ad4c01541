"""Glyphs made of a few strokes, drawn under random affine maps, thickness, blur and noise; and a small CNN for them."""

from __future__ import annotations

import itertools
from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import WeightedLossMixin

SIZE = 32
_CHUNK = 256


def glyph_strokes(num_classes: int, num_strokes: int = 4, seed: int = 0) -> Tensor:
    """Return the strokes of each class's glyph ``(C, S, 2, 2)``: end points within [-1, 1], one after another.

    Example:
        >>> glyph_strokes(10).shape
        torch.Size([10, 4, 2, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_classes, num_strokes + 1, 2, generator=generator) * 2 - 1
    return torch.stack([points[:, :-1], points[:, 1:]], 2)


def draw_glyphs(labels: Tensor, strokes: Tensor, *, noise: float = 0.25, seed: int = 0) -> Tensor:
    """Draw one image ``(n, 1, 32, 32)`` for each label, float32, about in [0, 1], the same for the same seed.

    Args:
        labels: Class ids ``(n,)``.
        strokes: What :func:`glyph_strokes` returned.
        noise: Standard deviation of the pixels' noise.
        seed: Seed of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 3 - 1.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).flip(1)
    images = torch.empty(len(labels), 1, SIZE, SIZE)
    for start in range(0, len(labels), _CHUNK):
        ids = labels[start : start + _CHUNK]
        n = len(ids)
        angle = 0.35 * torch.randn(n, generator=generator)
        scale = 0.6 + 0.5 * torch.rand(n, 2, generator=generator)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(n, 2, 2)
        shift = 0.25 * torch.randn(n, 1, 1, 2, generator=generator)
        wobble = 0.12 * torch.randn(n, *strokes.shape[1:], generator=generator)
        ends = (strokes[ids] + wobble) @ (turn * scale[:, None]).mT[:, None] + shift
        width = 0.06 + 0.08 * torch.rand(n, 1, generator=generator)
        ink = torch.sigmoid((width - _distance(pixels, ends)) / 0.03)
        ink += noise * torch.randn(ink.shape, generator=generator)
        images[start : start + _CHUNK] = ink.reshape(n, 1, SIZE, SIZE)
    return images


def _distance(pixels: Tensor, ends: Tensor) -> Tensor:
    """Return the distance ``(n, P)`` from pixels ``(P, 2)`` to the nearest of the strokes ``(n, S, 2, 2)``."""
    a, b = ends[:, :, 0], ends[:, :, 1]
    along = b - a
    # |p - a|^2 and (p - a) . along, from products, so that no (n, S, P, 2) tensor is made
    dot = along @ pixels.T - (along * a).sum(-1, keepdim=True)
    square = (pixels**2).sum(1) - 2 * (a @ pixels.T) + (a**2).sum(-1, keepdim=True)
    length = (along**2).sum(-1, keepdim=True).clamp(min=1e-6)
    t = (dot / length).clamp(0, 1)
    return (square - 2 * t * dot + t**2 * length).clamp(min=0).sqrt().amin(1)


@final
class GlyphData(L.LightningDataModule):
    """Glyphs of equally many classes; drawn anew in each process, in a few seconds.

    Args:
        num_train: Training images.
        num_test: Test images.
        num_classes: Number of glyphs.
        batch_size: Samples in a batch.
        noise: Standard deviation of the pixels' noise.
        seed: Seed of glyphs and images.
    """

    def __init__(
        self,
        num_train: int = 20_000,
        num_test: int = 2_000,
        num_classes: int = 20,
        batch_size: int = 128,
        noise: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_train, self.num_test, self.num_classes = num_train, num_test, num_classes
        self.batch_size, self.noise, self.seed = batch_size, noise, seed

    def setup(self, stage: str) -> None:
        strokes = glyph_strokes(self.num_classes, seed=self.seed)
        labels = torch.arange(self.num_train + self.num_test) % self.num_classes
        images = draw_glyphs(labels, strokes, noise=self.noise, seed=self.seed)
        self.train = TensorDataset(images[: self.num_train], labels[: self.num_train])
        self.held_out = TensorDataset(images[self.num_train :], labels[self.num_train :])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, 1000)

    test_dataloader = val_dataloader


@final
class GlyphModel(WeightedLossMixin, L.LightningModule):
    """Three strided convolutions and a linear layer, trained with SGD and a OneCycle schedule.

    Args:
        num_classes: Number of glyphs.
        width: Channels of the first convolution.
        lr: Highest learning rate.
    """

    def __init__(self, num_classes: int = 20, width: int = 16, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        channels = [1, width, 2 * width, 4 * width]
        blocks = [
            layer
            for c, d in itertools.pairwise(channels)
            for layer in (nn.Conv2d(c, d, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU())
        ]
        self.net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * width, num_classes))
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(images)
        losses = F.cross_entropy(logits, targets, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=targets)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets))
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
