"""EuroSAT: 27,000 satellite images of 64 x 64 in 10 classes; Helber et al., 2019."""

from __future__ import annotations

from typing import Any, final

from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from examples.vision.data import ImageData, to_tensor

SHARE = 0.8
"""Share of a class that trains: its first images. The last ones validate, as in USB."""


@final
class EuroSATData(ImageData):
    """The release in RGB as it unpacks: ``root/<class>/<class>_<number>.jpg``.

    Args:
        root: Folder with the folders of the classes.
        image_size: Side of the images that the model sees.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self, root: str = "data/eurosat/2750", image_size: int = 32, batch_size: int = 8, num_workers: int = 4
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.image_size = image_size

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        tensor = [v2.Resize(self.image_size), *to_tensor((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        crop = v2.RandomCrop(self.image_size, padding=self.image_size // 8, padding_mode="reflect")
        augment = [crop, v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        train = ImageFolder(self.root, v2.Compose([*tensor, *augment]))
        held_out = ImageFolder(self.root, v2.Compose(tensor))
        first, last = split(train.targets)
        return Subset(train, first), Subset(held_out, last)


def split(targets: list[int]) -> tuple[list[int], list[int]]:
    """Return the ids of the first `SHARE` of each class, and of the rest."""
    first, last = [], []
    for label in sorted(set(targets)):
        ids = [i for i, target in enumerate(targets) if target == label]
        cut = int(SHARE * len(ids))
        first += ids[:cut]
        last += ids[cut:]
    return first, last
