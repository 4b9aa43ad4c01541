"""CIFAR-10 and CIFAR-100, with their own labels or with the human ones of CIFAR-10N and CIFAR-100N."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
import torchvision
from torch.utils.data import Dataset
from torchvision.transforms import v2

from examples.vision.data import ImageData, to_tensor

STATISTICS = {  # mean and standard deviation of the training images' channels
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@final
class CIFARData(ImageData):
    """CIFAR from torchvision: ``root/cifar-10-batches-py`` or ``root/cifar-100-python``, downloaded if missing.

    Args:
        name: Which of the two.
        root: Folder of the data.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        name: Literal["CIFAR10", "CIFAR100"] = "CIFAR10",
        root: str = "data",
        batch_size: int = 128,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.name = name

    def prepare_data(self) -> None:
        for train in (True, False):
            getattr(torchvision.datasets, str(self.name))(self.root, train=train, download=True)

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        cls, tensor = getattr(torchvision.datasets, str(self.name)), to_tensor(*STATISTICS[str(self.name)])
        augment = [v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()]
        train = cls(self.root, train=True, transform=v2.Compose([*augment, *tensor]))
        return train, cls(self.root, train=False, transform=v2.Compose(tensor))


@final
class CIFARNData(ImageData):
    """CIFAR whose training labels were given by people: Wei et al., "Learning with Noisy Labels Revisited", ICLR 2022.

    Args:
        labels_file: ``CIFAR-10_human.pt`` or ``CIFAR-100_human.pt`` of the authors' repository,
            https://github.com/UCSC-REAL/cifar-10-100n (in ``data/``). It is a pickle: take it from nowhere else.
        label_set: ``"aggre_label"``, ``"worse_label"``, ``"random_label1"`` to 3 of CIFAR-10N; ``"noisy_label"`` of
            CIFAR-100N; ``"clean_label"`` of both.
        name: Which of the two.
        root: Folder of the data.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        labels_file: str,
        label_set: str,
        name: Literal["CIFAR10", "CIFAR100"] = "CIFAR10",
        root: str = "data",
        batch_size: int = 128,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.clean = CIFARData(name, root, batch_size, num_workers)
        self.labels_file = labels_file
        self.label_set = label_set

    def prepare_data(self) -> None:
        self.clean.prepare_data()

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        train: Any
        train, held_out = self.clean.datasets()
        labels = torch.load(self.labels_file, weights_only=False)  # NumPy arrays, pickled
        if self.label_set not in labels:
            raise ValueError(f"Expected `label_set` to be one of {sorted(labels)}, but got {self.label_set!r}.")
        if list(labels["clean_label"]) != train.targets:
            raise ValueError(
                f"Expected {self.labels_file} to hold the labels of {self.clean.name} in torchvision's order, but its "
                "`clean_label` differs from the data set's labels."
            )
        train.targets = [int(label) for label in labels[self.label_set]]
        return train, held_out
