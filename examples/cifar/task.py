"""CIFAR-10 as bytes in memory, cropped and flipped batch by batch, and a network for two CPU cores."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal, final

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import WeightedLossMixin

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUMAN = {
    "aggregate": ("aggre_label", "human_aggre.npy"),
    "random1": ("random_label1", "human_random1.npy"),
    "worst": ("worse_label", "human_worse.npy"),
}
"""Human labels of CIFAR-10N: by name, the key in the authors' file, and a file of NumPy's."""


def read_part(folder: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Return images ``(n, 3, 32, 32)`` uint8 and labels ``(n,)`` of files of ``cifar-10-batches-py``.

    Raises:
        FileNotFoundError: If one is missing; the message says how to get it.
    """
    images, labels = [], []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected CIFAR-10 in torchvision's layout, data_batch_1 to 5 and test_batch in {folder}, but there "
                f"is no {name}. `python -c \"import torchvision; torchvision.datasets.CIFAR10('{folder.parent}', "
                'download=True)"` fetches it.'
            )
        batch = pickle.loads(path.read_bytes(), encoding="bytes")  # as torchvision reads it: from its authors, or you
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        images.append(torch.from_numpy(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)))
        labels.append(torch.tensor(batch["labels"]))
    return torch.cat(images), torch.cat(labels)


def read_human(root: Path, name: str) -> Tensor:
    """Return the labels that people gave.

    Raises:
        FileNotFoundError: If there is no file of them.
    """
    key, array = HUMAN[name]
    if (path := root / "CIFAR-10_human.pt").is_file():
        return torch.as_tensor(np.asarray(torch.load(path, weights_only=False)[key]), dtype=torch.int64)
    if (path := root / array).is_file():
        return torch.from_numpy(np.load(path).astype(np.int64))
    raise FileNotFoundError(
        f"Expected the labels of CIFAR-10N in {root}, as CIFAR-10_human.pt or {array}, but there is neither. The first "
        "is in https://github.com/UCSC-REAL/cifar-10-100n, in data/."
    )


@final
class Cifar10Data(L.LightningDataModule):
    """CIFAR-10, tested on its clean labels; ``wrong`` ``(n,)``, the training set's ``flipped``, says which are not.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` and, for human labels, those of CIFAR-10N.
        labels: ``"clean"``, or the human ones.
        batch_size: Samples in a batch.
    """

    def __init__(
        self,
        root: str = "data",
        labels: Literal["clean", "aggregate", "random1", "worst"] = "clean",
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        self.root, self.labels, self.batch_size = Path(root), labels, batch_size

    def setup(self, stage: str) -> None:
        folder = self.root / "cifar-10-batches-py"
        images, clean = read_part(folder, [f"data_batch_{i}" for i in range(1, 6)])
        given = clean if self.labels == "clean" else read_human(self.root, self.labels)
        if given.shape != clean.shape:
            raise ValueError(
                f"Expected a label for each of {len(clean)} images, but got {len(given)} of {self.labels!r}."
            )
        self.train, self.wrong = TensorDataset(images, given), given != clean
        vars(self.train).update(flipped=self.wrong, classes=CLASSES)  # for who looks at the noise, and at reports
        self.held_out = TensorDataset(*read_part(folder, ["test_batch"]))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, 1000)


def crop_and_flip(images: Tensor, reach: int = 2) -> Tensor:
    """Return each image moved by up to ``reach`` pixels each way, every other one mirrored; borders are reflected."""
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (reach,) * 4, mode="reflect").to(images.dtype)
    top, left = (torch.randint(2 * reach + 1, (count, 1), device=images.device) for _ in range(2))
    rows = top + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device).expand(count, -1)
    mirrored = torch.rand(count, 1, device=images.device) < 0.5
    columns = left + torch.where(mirrored, across.flip(1), across)
    sample = torch.arange(count, device=images.device)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def small_network() -> nn.Sequential:
    """Return 237,250 weights, of which the first layer sees a quarter of the positions."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 2, stride=2), nn.ReLU(),
        nn.Conv2d(24, 64, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the papers' stem for small images, channels last: fast on a GPU."""
    from torchvision.models import resnet18

    network: nn.Module = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network.to(memory_format=torch.channels_last)


@final
class Cifar10Model(WeightedLossMixin, L.LightningModule):
    """A classifier of bytes: SGD with Nesterov momentum 0.9, weight decay 5e-4, OneCycle.

    Args:
        arch: ``"small"``, for a CPU; ``"resnet18"``, the papers'.
        lr: Highest learning rate; the papers' is 0.2.
    """

    def __init__(self, arch: Literal["small", "resnet18"] = "small", lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = small_network() if arch == "small" else resnet18()
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(crop_and_flip(images))
        losses = F.cross_entropy(logits, targets, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=targets)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets))
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = int(self.trainer.estimated_stepping_batches) + 1
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
