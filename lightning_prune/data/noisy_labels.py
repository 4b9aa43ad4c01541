"""A data module of which a share of the training labels is wrong, for experiments with any data set, from yaml too."""

from __future__ import annotations

from typing import Any, final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_prune.core.checks import check_int, check_ratio
from lightning_prune.data.noise import inject_label_noise
from lightning_prune.data.relabelled import Relabelled


@final
class NoisyLabels(LightningDataModule):
    """The data of another module, with wrong labels in its training set; all else is the other's.

    The training set gets an attribute ``flipped`` ``(n,)``, a bool mask of the wrong labels:
    ``PruningMonitor(flipped="flipped")`` logs their share among what is selected. The same labels are wrong in every
    run and on every rank.

    Args:
        data: The module underneath; its training loader is a `DataLoader` of a map-style dataset of tuples, lists or
            mappings.
        kind: Kind of noise, see `inject_label_noise`.
        rate: Share of the labels that are changed, in [0, 1], as the kind counts it.
        num_classes: Number of classes, at least 2.
        position: Where the label is in a sample: a position, or the key of a mapping.
        noise_seed: Seed of the draw.

    Raises:
        TypeError: If ``data`` is no `LightningDataModule`; at the first loader, if that is not as said.
        ValueError: If an argument is out of range.

    Example:
        >>> images, labels = torch.zeros(10, 3), torch.arange(10) % 2
        >>> clean = LightningDataModule.from_datasets(TensorDataset(images, labels))
        >>> noisy = NoisyLabels(clean, rate=0.2, num_classes=2)
        >>> int(noisy.train_dataloader().dataset.flipped.sum())
        2
    """

    def __init__(
        self,
        data: LightningDataModule,
        kind: str = "symmetric",
        rate: float = 0.2,
        num_classes: int = 10,
        position: int | str = 1,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(data, LightningDataModule):
            raise TypeError(f"Expected `data` to be a LightningDataModule, but got {type(data).__name__}.")
        check_ratio("rate", rate, closed_high=True)
        check_int("num_classes", num_classes, low=2)
        check_int("noise_seed", noise_seed, low=0)
        self.data, self.kind, self.rate, self.num_classes = data, kind, rate, num_classes
        self.position, self.noise_seed = position, noise_seed
        self._noisy: tuple[Dataset[Any], Relabelled] | None = None
        inject_label_noise(torch.zeros(0, dtype=torch.int64), kind, rate, num_classes)  # refuses what is out of range

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
        """Return the other module's loader, over the noisy labels."""
        loader = self.data.train_dataloader()
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__getitem__"):
            raise TypeError(
                "Expected `train_dataloader` of the module in NoisyLabels to return a DataLoader of a map-style "
                f"dataset, but got {type(loader).__name__}."
            )
        if self._noisy is None or self._noisy[0] is not loader.dataset:
            self._noisy = loader.dataset, self._relabel(loader.dataset)
        vars(loader)["dataset"] = self._noisy[1]  # of the same length, so its samplers stay as they are
        return loader

    def _relabel(self, dataset: Dataset[Any]) -> Relabelled:
        labels = labels_of(dataset, self.position)
        generator = torch.Generator().manual_seed(self.noise_seed)
        noisy, flipped = inject_label_noise(labels, self.kind, self.rate, self.num_classes, generator=generator)
        ids = flipped.nonzero().squeeze(1).tolist()
        found = Relabelled(dataset, dict(zip(ids, noisy[flipped].tolist(), strict=True)), self.position)
        vars(found)["flipped"] = flipped
        return found

    def val_dataloader(self) -> Any:
        """Return the other module's, with right labels."""
        return self.data.val_dataloader()

    def test_dataloader(self) -> Any:
        """Return the other module's, with right labels."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """Return the other module's."""
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


def labels_of(dataset: Any, position: int | str) -> Tensor:
    """Return the labels ``(n,)`` of a dataset: its ``targets`` or ``labels``, or else one by one from its samples."""
    found = next((value for name in ("targets", "labels") if (value := getattr(dataset, name, None)) is not None), None)
    if found is None and isinstance(dataset, TensorDataset) and isinstance(position, int):
        found = dataset.tensors[position]
    if found is None:
        found = [int(dataset[i][position]) for i in range(len(dataset))]
    return torch.as_tensor(found).long()
