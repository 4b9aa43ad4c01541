"""Clothing-1M: a million shop images of 14 classes, their labels from the text around them; Xiao et al., CVPR 2015."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from torch.utils.data import Dataset

from examples.vision.data import ImageData, ListedImages, cropping


@final
class Clothing1MData(ImageData):
    """The release as it unpacks: key lists, labels by key, and ``images/0`` to ``images/9``.

    ``noisy_train_key_list.txt`` has a key a line, ``images/0/00/<name>.jpg``; ``noisy_label_kv.txt`` a key and a
    class id. Validation takes ``clean_val_key_list.txt`` (or the test list) with ``clean_label_kv.txt``.

    Args:
        root: Folder with the lists and ``images``.
        held_out: Which clean list to validate on.
        image_size: Side of the images that the model sees.
        resize: Shorter side before cropping.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        root: str = "data/clothing1m",
        held_out: str = "clean_val_key_list.txt",
        image_size: int = 224,
        resize: int = 256,
        batch_size: int = 32,
        num_workers: int = 8,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.held_out_list = held_out
        self.image_size = image_size
        self.resize = resize

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        augment, plain = cropping(self.resize, self.image_size)
        train = self.listed("noisy_train_key_list.txt", "noisy_label_kv.txt")
        return ListedImages(train, augment), ListedImages(self.listed(self.held_out_list, "clean_label_kv.txt"), plain)

    def listed(self, keys: str, labels: str) -> list[tuple[Path, int]]:
        """Return the images of a key list with their labels."""
        label_of = dict(line.split() for line in (self.root / labels).read_text().splitlines() if line.strip())
        wanted = (self.root / keys).read_text().split()
        return [(self.root / key, int(label_of[key])) for key in wanted]
