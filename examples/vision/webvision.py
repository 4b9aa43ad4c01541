"""WebVision 1.0, the Google images of its first 50 classes ("mini-WebVision")."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from torch.utils.data import Dataset

from examples.vision.data import ImageData, ListedImages, cropping


@final
class WebVisionData(ImageData):
    """The resized release as it unpacks: ``info/*_filelist*.txt``, ``google/q0001/*.jpg``, ``val_images_256/*.jpg``.

    A line of a list is a path and a class id: ``google/q0001/ynPBtz1SJgaGPM.jpg 0``; in ``val_filelist.txt`` the path
    is within ``val_images_256``.

    Args:
        root: Folder with ``info``.
        num_classes: Classes used, from the first.
        image_size: Side of the images that the model sees.
        resize: Shorter side before cropping.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        root: str = "data/webvision",
        num_classes: int = 50,
        image_size: int = 299,
        resize: int = 320,
        batch_size: int = 32,
        num_workers: int = 8,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.num_classes = num_classes
        self.image_size = image_size
        self.resize = resize

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        augment, plain = cropping(self.resize, self.image_size)
        train = self.listed("train_filelist_google.txt", self.root)
        return ListedImages(train, augment), ListedImages(
            self.listed("val_filelist.txt", self.root / "val_images_256"), plain
        )

    def listed(self, name: str, folder: Path) -> list[tuple[Path, int]]:
        """Return the images of a list that belong to the classes used."""
        lines = [line.split() for line in (self.root / "info" / name).read_text().splitlines() if line.strip()]
        return [(folder / path, int(label)) for path, label in lines if int(label) < self.num_classes]
