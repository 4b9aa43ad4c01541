"""What the image data sets share: loaders, transforms, and images named by a list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageData(L.LightningDataModule, ABC):
    """Loaders around the two data sets that a subclass's ``datasets()`` returns, for training and for validation.

    Args:
        root: Folder of the data.
        batch_size: Samples in a batch of one device; the papers' batch sizes are of all devices together.
        num_workers: Processes that load.
    """

    def __init__(self, root: str, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers

    @abstractmethod
    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """Return the data to train on, and to validate on."""

    def setup(self, stage: str) -> None:
        self.train, self.held_out = self.datasets()

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.held_out, shuffle=False)

    def loader(self, dataset: Dataset[Any], *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


@final
class ListedImages(Dataset[Any]):
    """Images by path, with their labels, as (tensor, int); in the order of the list.

    Args:
        samples: Pairs of path and label.
        transform: From a PIL image to a tensor.
    """

    def __init__(self, samples: list[tuple[Path, int]], transform: Any) -> None:
        if not samples:
            raise ValueError("Expected a list that names images, but got none of the wanted classes.")
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return self.transform(default_loader(str(path))), label


def to_tensor(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Any]:
    """Return the steps from a PIL image to a normalised tensor."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def cropping(resize: int, size: int) -> tuple[v2.Compose, v2.Compose]:
    """Return the usual transforms of fine-tuning: a random crop and flip to train, the centre to validate."""
    train = [v2.Resize(resize), v2.RandomCrop(size), v2.RandomHorizontalFlip(), *to_tensor(*IMAGENET)]
    return v2.Compose(train), centre(resize, size)


def centre(resize: int, size: int) -> v2.Compose:
    """Return the transform of validation: the shorter side to ``resize``, then the centre."""
    return v2.Compose([v2.Resize(resize), v2.CenterCrop(size), *to_tensor(*IMAGENET)])
