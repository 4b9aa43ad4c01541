"""CIFAR in two views, weak and strong, with each sample's id: what consistency losses train on."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from examples.vision.cifar import STATISTICS
from examples.vision.data import ImageData, to_tensor


@final
class Views(Dataset[Any]):
    """A dataset's images twice, and each sample's id: ((weak, strong), target, id).

    Args:
        dataset: From PIL images, by its attribute ``transform``.
        strong: The second transform.
    """

    def __init__(self, dataset: Any, strong: v2.Compose) -> None:
        self.weak, self.strong = dataset.transform, strong
        dataset.transform = self.both
        self.dataset, self.targets = dataset, dataset.targets

    def both(self, image: Any) -> tuple[Tensor, Tensor]:
        """Return the two views of an image."""
        return self.weak(image), self.strong(image)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int, int]:
        return *self.dataset[index], index


@final
class TwoViews(ImageData):
    """CIFAR or CIFAR-N whose training images come in two views: the usual crop and flip, and AutoAugment.

    Args:
        data: ``CIFARData`` or ``CIFARNData``, whose datasets are taken.
        name: Which CIFAR it is.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(self, data: ImageData, name: str = "CIFAR10", batch_size: int = 128, num_workers: int = 4) -> None:
        super().__init__(str(data.root), batch_size, num_workers)
        self.data, self.name = data, name

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        train, held_out = self.data.datasets()
        strong = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
        return Views(train, v2.Compose([*strong, *to_tensor(*STATISTICS[str(self.name)])])), held_out
