"""A data module of which a share of the training labels is wrong, for experiments with any data set, from yaml too."""

from __future__ import annotations

from typing import Any, final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lightning_prune.core.checks import check_int, check_ratio
from lightning_prune.data.changed_training import ChangedTraining
from lightning_prune.data.noise import inject_label_noise
from lightning_prune.data.relabelled import Relabelled


@final
class NoisyLabels(ChangedTraining):
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
        super().__init__(data, noise_seed)
        check_ratio("rate", rate, closed_high=True)
        check_int("num_classes", num_classes, low=2)
        self.kind, self.rate, self.num_classes, self.position = kind, rate, num_classes, position
        inject_label_noise(torch.zeros(0, dtype=torch.int64), kind, rate, num_classes)  # refuses what is out of range

    def change(self, dataset: Dataset[Any]) -> Relabelled:
        """Return the training set with wrong labels."""
        labels = labels_of(dataset, self.position)
        generator = torch.Generator().manual_seed(self.noise_seed)
        noisy, flipped = inject_label_noise(labels, self.kind, self.rate, self.num_classes, generator=generator)
        ids = flipped.nonzero().squeeze(1).tolist()
        found = Relabelled(dataset, dict(zip(ids, noisy[flipped].tolist(), strict=True)), self.position)
        vars(found)["flipped"] = flipped
        return found


def labels_of(dataset: Any, position: int | str) -> Tensor:
    """Return the labels ``(n,)`` of a dataset: its ``targets`` or ``labels``, or else one by one from its samples."""
    found = next((value for name in ("targets", "labels") if (value := getattr(dataset, name, None)) is not None), None)
    if found is None and isinstance(dataset, TensorDataset) and isinstance(position, int):
        found = dataset.tensors[position]
    if found is None:
        found = [int(dataset[i][position]) for i in range(len(dataset))]
    return torch.as_tensor(found).long()
