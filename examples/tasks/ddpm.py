"""Diffusion with classifier-free guidance: CIFAR-10. ``lightning-prune fit --config examples/tasks/ddpm.yaml``

**The loss of a sample** is the mean squared error of the noise that was added to it, at a time step drawn for it. For
guidance, a tenth of the labels is replaced by "none"; these samples have their loss like the others.

**Pruning** compares losses of unlike time steps: the error is large at an early one, where there is little noise to be
found, and small at a late one. Steps are drawn anew in each epoch, so a score tells of the last draw, too, and the next
epoch's steps do not depend on it: early ones are trained no more often than late ones.

Data: CIFAR-10's pickles, ``root/cifar-10-batches-py``, downloaded if missing.
"""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from examples.tasks.data import TaskData
from examples.tasks.dit import DiT
from lightning_prune import WeightedLossMixin

STEPS, NO_LABEL = 1000, 10


@final
class CIFAR10Data(TaskData):
    """CIFAR-10's training images, in [-1, 1], with flips."""

    def prepare_data(self) -> None:
        CIFAR10(self.root, download=True)

    def dataset(self) -> Any:
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        return CIFAR10(self.root, transform=v2.Compose([v2.RandomHorizontalFlip(), v2.ToImage(), *scale]))


@final
class DDPM(WeightedLossMixin, L.LightningModule):
    """Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Ho and Salimans, "Classifier-Free Guidance".

    Args:
        patch: Side of the transformer's patches.
        width: Size of its tokens.
        depth: Number of its blocks.
        heads: Heads of their attention.
        lr: Learning rate of AdamW.
    """

    def __init__(self, patch: int = 2, width: int = 384, depth: int = 12, heads: int = 6, lr: float = 1e-4) -> None:
        super().__init__()
        self.lr = lr
        self.net = DiT(32, patch, width, depth, heads, labels=NO_LABEL + 1)
        self.register_buffer("betas", torch.linspace(1e-4, 0.02, STEPS))
        self.register_buffer("signal", torch.cumprod(1 - self.betas, dim=0))  # share of the variance that is the image
        self.betas: Tensor
        self.signal: Tensor

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        times = torch.randint(STEPS, (len(images),), device=self.device)
        noise = torch.randn_like(images)
        labels = torch.where(torch.rand(len(images), device=self.device) < 0.1, NO_LABEL, labels)
        signal = self.signal[times][:, None, None, None]
        predicted = self.net(signal.sqrt() * images + (1 - signal).sqrt() * noise, times, labels)
        return self.weighted_loss((predicted - noise).square())  # (B, 3, 32, 32): a sample's is the mean

    @torch.no_grad()
    def sample(self, labels: Tensor, guidance: float = 3.0) -> Tensor:
        """Return an image ``(B, 3, 32, 32)`` of each label ``(B,)``."""
        images = torch.randn(len(labels), 3, 32, 32, device=self.device)
        for step in reversed(range(STEPS)):
            times, beta, signal = torch.full_like(labels, step), self.betas[step], self.signal[step]
            plain = self.net(images, times, torch.full_like(labels, NO_LABEL))
            noise = plain + guidance * (self.net(images, times, labels) - plain)
            images = (images - beta / (1 - signal).sqrt() * noise) / (1 - beta).sqrt()
            images = images + beta.sqrt() * torch.randn_like(images) * (step > 0)
        return images

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
