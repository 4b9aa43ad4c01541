"""ImageNet-1K in torchvision's layout: ``root/train/<class>/*.JPEG`` and ``root/val/<class>/*.JPEG``."""

from __future__ import annotations

from typing import Any, Literal, final

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from examples.vision.data import IMAGENET, ImageData, centre, to_tensor


@final
class ImageNetData(ImageData):
    """Any pair of image folders with one folder a class; random resized crops and flips to train.

    Args:
        root: Folder with ``train`` and ``val``.
        image_size: Side of the images that the model sees.
        held_out_size: Side of those that it is validated on; None: the same.
        resize: Shorter side before these are cropped; None: 8/7 of their side.
        augment: ``"none"``, torchvision's ``"randaugment"``, or its ``"trivial"`` (TrivialAugmentWide).
        magnitude: Of RandAugment, in [0, 30].
        erase: Probability of RandomErasing.
        min_scale: Least share of an image's area that a random crop shows.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        image_size: int = 224,
        held_out_size: int | None = None,
        resize: int | None = None,
        augment: Literal["none", "randaugment", "trivial"] = "none",
        magnitude: int = 9,
        erase: float = 0.0,
        min_scale: float = 0.08,
        batch_size: int = 256,
        num_workers: int = 8,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.image_size, self.held_out_size = image_size, held_out_size or image_size
        self.resize = resize or self.held_out_size * 8 // 7
        self.augment, self.magnitude = augment, magnitude
        self.erase = erase
        self.min_scale = min_scale

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        steps = [v2.RandomResizedCrop(self.image_size, (self.min_scale, 1)), v2.RandomHorizontalFlip()]
        if self.augment != "none":
            steps.append(
                v2.RandAugment(magnitude=self.magnitude) if self.augment == "randaugment" else v2.TrivialAugmentWide()
            )
        steps += to_tensor(*IMAGENET)
        if self.erase:
            steps.append(v2.RandomErasing(self.erase))
        train = ImageFolder(self.root / "train", v2.Compose(steps))
        return train, ImageFolder(self.root / "val", centre(self.resize, self.held_out_size))
