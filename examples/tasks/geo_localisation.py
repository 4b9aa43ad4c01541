"""Where a street view was taken: CVUSA. ``lightning-prune fit --config examples/tasks/geo_localisation.yaml``

**The loss of a sample**, a street view and the aerial image of its place, is the mean over its triplets: every other
sample of the batch is a negative of both, with a soft margin, ``log(1 + exp(alpha * (d_own - d_other)))``.
``weighted_loss`` is given losses ``(B, B)``, row i being sample i's, and a mask without the diagonal.

**Its loss depends on its batch**, see ``examples/tasks/clip.py``; but a mean over triplets does not grow with the
batch, as a cross-entropy does. A single pair has no negatives: its loss counts 0 and is not recorded.

Data: ``root/splits/train-19zl.csv``, with lines ``bingmap/19/0000001.jpg,streetview/panos/0000001.jpg,...``.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from examples.tasks.data import TaskData
from examples.vision.data import IMAGENET, to_tensor
from lightning_prune import WeightedLossMixin


@final
class Places(Dataset[Any]):
    """Pairs of a street view and of an aerial image, scaled to the sizes."""

    def __init__(self, root: Path, sizes: list[tuple[int, int]]) -> None:
        with (root / "splits" / "train-19zl.csv").open(newline="") as lines:
            self.paths = [(root / street, root / aerial) for aerial, street, *_ in csv.reader(lines)]
        self.transforms = [v2.Compose([v2.Resize(size), *to_tensor(*IMAGENET)]) for size in sizes]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [t(default_loader(str(path))) for t, path in zip(self.transforms, self.paths[index], strict=True)]


@final
class CVUSA(TaskData):
    """CVUSA's training pairs.

    Args:
        root: Folder of ``splits``.
        sizes: Height and width of the street views, and of the aerial images.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(self, root: str, sizes: list[tuple[int, int]], batch_size: int = 32, num_workers: int = 8) -> None:
        super().__init__(root, batch_size, num_workers)
        self.sizes = sizes

    def dataset(self) -> Places:
        return Places(self.root, self.sizes)


@final
class GeoLocalisation(WeightedLossMixin, L.LightningModule):
    """A network of timm for each of the two; the loss is that of Hu et al., "CVM-Net", CVPR 2018.

    Args:
        arch: The networks.
        model_args: Further arguments of that of street views, and of that of aerial images.
        alpha: Slope of the soft margin.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self,
        arch: str = "resnet34",
        model_args: list[dict[str, Any]] | None = None,
        alpha: float = 10.0,
        lr: float = 1e-4,
    ) -> None:
        super().__init__()
        self.lr, self.alpha = lr, alpha
        self.street, self.aerial = (timm.create_model(arch, num_classes=0, **a) for a in model_args or [{}, {}])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        street, aerial = F.normalize(self.street(batch[0])), F.normalize(self.aerial(batch[1]))
        distances = 2 - 2 * street @ aerial.T  # (B, B)
        own = distances.diagonal()[:, None]
        losses = F.softplus(self.alpha * (own - distances)) + F.softplus(self.alpha * (own - distances.T))
        return self.weighted_loss(losses / 2, mask=~torch.eye(len(own), dtype=torch.bool, device=own.device))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
