"""A variational autoencoder on MNIST. ``lightning-prune fit --config examples/tasks/vae.yaml``

**The loss of a sample** is its negative evidence bound, the sum of two parts: the cross-entropy of its pixels and the
divergence of its code from the prior. Both are sums over the image, as in the paper, not means over pixels: their
ratio is the objective. ``weighted_loss`` takes them by name and adds them up per sample.

**Pruning** leaves out images with a small sum: those reconstructed well, and those with few uncertain pixels. The noise
of the code is drawn anew in each epoch, and is part of a sample's score.

Data: ``root/MNIST/raw/train-images-idx3-ubyte`` and the other three files, downloaded if missing.
"""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from examples.tasks.data import TaskData
from lightning_prune import WeightedLossMixin


@final
class MNISTData(TaskData):
    """MNIST's training images, in [0, 1]."""

    def prepare_data(self) -> None:
        MNIST(self.root, download=True)

    def dataset(self) -> Any:
        return MNIST(self.root, transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))


@final
class VAE(WeightedLossMixin, L.LightningModule):
    """The autoencoder of Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014.

    Args:
        hidden: Units of the hidden layers.
        code: Size of the code.
        lr: Learning rate of Adam.
    """

    def __init__(self, hidden: int = 400, code: int = 20, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, 784))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, _ = batch
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        pixels = F.binary_cross_entropy_with_logits(self.decoder(code), images.flatten(1), reduction="none")
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance) / 2
        return self.weighted_loss({"pixels": pixels.sum(1), "divergence": divergence.sum(1)})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
