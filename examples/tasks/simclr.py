"""Self-supervision by two views of each image: STL-10. ``lightning-prune fit --config examples/tasks/simclr.yaml``

**The loss of a sample** is the mean over its two views: each is to find the other among the 2B - 1 views of the batch.
The network sees 2B rows, first views before second ones; ``weighted_loss`` is given ``losses.view(2, B).mean(0)``.

**Its loss depends on its batch**: negatives are the views of other kept samples, see ``examples/tasks/clip.py``. So
RePB compares within a step, and a shorter last batch is left out. Pruned are images told apart from others easily.

Data: ``root/stl10_binary/unlabeled_X.bin``, 100,000 images of 3 x 96 x 96 bytes, by columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import numpy as np
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from examples.tasks.data import TaskData
from lightning_prune import WeightedLossMixin


@final
class TwoViews(Dataset[Any]):
    """Two random views ``(3, S, S)`` of each image."""

    def __init__(self, file: Path, size: int) -> None:
        self.images = np.memmap(file, np.uint8, "r").reshape(-1, 3, 96, 96)
        jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8)
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2)]
        self.view = v2.Compose([*steps, v2.GaussianBlur(9), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(self.images[index].transpose(0, 2, 1).copy())
        return self.view(image), self.view(image)


@final
class STL10Data(TaskData):
    """The unlabelled images of STL-10.

    Args:
        root: Folder of ``stl10_binary``.
        size: Side of the views.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(self, root: str, size: int = 96, batch_size: int = 256, num_workers: int = 8) -> None:
        super().__init__(root, batch_size, num_workers, drop_last=True)
        self.size = size

    def dataset(self) -> TwoViews:
        return TwoViews(self.root / "stl10_binary" / "unlabeled_X.bin", self.size)


@final
class SimCLR(WeightedLossMixin, L.LightningModule):
    """Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.

    Args:
        arch: A model of timm.
        model_args: Further arguments of it.
        temperature: What cosines are divided by.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self,
        arch: str = "resnet18",
        model_args: dict[str, Any] | None = None,
        temperature: float = 0.5,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.lr, self.temperature = lr, temperature
        encoder = timm.create_model(arch, num_classes=0, **(model_args or {}))
        hidden = encoder.num_features
        self.net = nn.Sequential(encoder, nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 128))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        views = F.normalize(self.net(torch.cat(batch)))
        logits = (views @ views.T / self.temperature).fill_diagonal_(float("-inf"))  # none is to find itself
        others = torch.arange(len(views), device=views.device).roll(len(views) // 2)
        return self.weighted_loss(F.cross_entropy(logits, others, reduction="none").view(2, -1).mean(0))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
