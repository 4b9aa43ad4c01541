"""CIFAR with few labels, in two loaders."""

from __future__ import annotations

from typing import Any, Literal, final

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import Subset
from torchvision.transforms import v2

from examples.tasks.data import TaskData
from examples.vision.cifar import STATISTICS, CIFARData
from examples.vision.data import to_tensor
from examples.vision.views import Views


@final
class SemiSupervisedCIFAR(TaskData):
    """CIFAR, the first images of each class with their labels, and all of them without.

    Args:
        root: Folder of the data.
        name: Which CIFAR.
        labels: Labels of a class.
        ratio: Unlabelled samples for each labelled one.
        batch_size: Labelled samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        root: str,
        name: Literal["CIFAR10", "CIFAR100"] = "CIFAR100",
        labels: int = 4,
        ratio: int = 7,
        batch_size: int = 64,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.statistics, self.labels, self.ratio = STATISTICS[name], labels, ratio
        self.source = CIFARData(name, root)

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def dataset(self) -> Views:
        weak: Any = self.source.datasets()[0]
        both = self.source.datasets()[0]
        found: dict[int, list[int]] = {}
        for index, target in enumerate(weak.targets):
            found.setdefault(target, []).append(index)
        self.labelled = Subset(weak, [index for own in found.values() for index in own[: self.labels]])
        steps = [v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(), v2.RandAugment()]
        return Views(both, v2.Compose([*steps, *to_tensor(*self.statistics), v2.RandomErasing(1.0)]))

    def train_dataloader(self) -> Any:
        loaders = {"labelled": self.labelled, "unlabelled": self.train}
        sizes = {"labelled": self.batch_size, "unlabelled": self.ratio * self.batch_size}
        made = {name: self.loader(data, sizes[name]) for name, data in loaders.items()}
        return CombinedLoader(made, "max_size_cycle")
