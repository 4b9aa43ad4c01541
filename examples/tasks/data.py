"""What the tasks share: a shuffled loader around a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset, default_collate


class TaskData(L.LightningDataModule, ABC):
    """A shuffled loader around what a subclass's ``dataset()`` returns.

    Args:
        root: Folder of the data.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
        drop_last: Leave out a last batch that is shorter, where a sample's loss depends on how many are beside it.
    """

    def __init__(self, root: str, batch_size: int = 128, num_workers: int = 4, drop_last: bool = False) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last

    @abstractmethod
    def dataset(self) -> Any:
        """Return the data to train on: anything of a length that can be read by index."""

    def collate(self, samples: list[Any]) -> Any:
        """Return the batch of some samples."""
        return default_collate(samples)

    def setup(self, stage: str) -> None:
        self.train: Any = self.dataset()
        if len(self.train) == 0:
            raise ValueError(f"Expected samples in `root`, but got none in {str(self.root)!r}.")

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, self.batch_size)

    def loader(self, dataset: Dataset[Any], batch_size: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size,
            shuffle=True,
            drop_last=self.drop_last,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
