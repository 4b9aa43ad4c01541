"""A data module whose training set is another module's, changed once: wrong labels, corrupted images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_prune.core.checks import check_int


class ChangedTraining(LightningDataModule, ABC):
    """The data of another module, with its training set changed; all else is the other's.

    Args:
        data: The module underneath; its training loader is a `DataLoader` of a map-style dataset.
        noise_seed: Seed of the change, which is the same in every run and on every rank.

    Raises:
        TypeError: If ``data`` is no `LightningDataModule`; at the first loader, if that is not as said.
        ValueError: If ``noise_seed`` is negative.
    """

    def __init__(self, data: LightningDataModule, noise_seed: int = 0) -> None:
        super().__init__()
        if not isinstance(data, LightningDataModule):
            raise TypeError(f"Expected `data` to be a LightningDataModule, but got {type(data).__name__}.")
        check_int("noise_seed", noise_seed, low=0)
        self.data, self.noise_seed = data, noise_seed
        self._changed: tuple[Dataset[Any], Dataset[Any]] | None = None

    @abstractmethod
    def change(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """Return a view of the training set, of the same length."""

    def prepare_data(self) -> None:
        """Have the other module do it."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Have the other module do it."""
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def teardown(self, stage: str) -> None:
        """Have the other module do it."""
        self.data.teardown(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the other module's loader, over the changed training set."""
        loader = self.data.train_dataloader()
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__getitem__"):
            raise TypeError(
                f"Expected `train_dataloader` of the module in {type(self).__name__} to return a DataLoader of a "
                f"map-style dataset, but got {type(loader).__name__}."
            )
        if self._changed is None or self._changed[0] is not loader.dataset:
            self._changed = loader.dataset, self.change(loader.dataset)
        vars(loader)["dataset"] = self._changed[1]  # of the same length, so its samplers stay as they are
        return loader

    def val_dataloader(self) -> Any:
        """Return the other module's, unchanged."""
        return self.data.val_dataloader()

    def test_dataloader(self) -> Any:
        """Return the other module's, unchanged."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """Return the other module's, unchanged."""
        return self.data.predict_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Have the other module do it."""
        return self.data.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Have the other module do it."""
        return self.data.on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Have the other module do it."""
        return self.data.on_after_batch_transfer(batch, dataloader_idx)
