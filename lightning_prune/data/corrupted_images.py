"""A data module with a share of corrupted training images, for experiments with any data set, from yaml too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.rng import make_generator
from lightning_prune.data.changed_training import ChangedTraining
from lightning_prune.data.corruption import corruptions, draw_corruptions
from lightning_prune.data.view import View


@final
class CorruptedImages(ChangedTraining):
    """The data of another module, with corrupted images in its training set; all else is the other's.

    The five kinds of corruption are those of `corrupt_images`.

    Images have to be uint8 tensors ``(C, H, W)`` or PIL images: corruption comes before normalisation and augmentation.
    Where the other module's dataset does these, build it without, and give them here as ``transform``. The training set
    gets the attributes ``corrupted`` ``(n,)``, a bool mask, and ``corruption`` ``(n,)`` int64, the kind or -1:
    ``PruningMonitor(flipped="corrupted")`` logs their share among what is selected. The same images are corrupted, in
    the same way, in every epoch and run, and on every rank.

    Args:
        data: The module underneath; its training loader is a `DataLoader` of a map-style dataset of tuples, lists or
            mappings.
        rate: Share of the images for each of the five kinds, in [0, 0.2]. TDDS takes 0.04, 20 % in all.
        position: Where the image is in a sample: a position, or the key of a mapping.
        transform: What is done to each training image afterwards, from PIL to PIL where images are such.
        noise_seed: Seed of the draws.

    Raises:
        TypeError: If ``data`` is no `LightningDataModule`; at the first loader, if that or an image is not as said.
        ValueError: If an argument is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images, labels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10) % 2
        >>> clean = LightningDataModule.from_datasets(TensorDataset(images, labels))
        >>> int(CorruptedImages(clean, rate=0.1).train_dataloader().dataset.corrupted.sum())
        5
    """

    def __init__(
        self,
        data: LightningDataModule,
        rate: float = 0.04,
        position: int | str = 0,
        transform: Callable[[Any], Any] | None = None,
        noise_seed: int = 0,
    ) -> None:
        super().__init__(data, noise_seed)
        check_ratio("rate", rate, high=0.2, closed_high=True)
        self.rate, self.position, self.transform = rate, position, transform

    def change(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """Return the training set with corrupted images."""
        found = _Corrupted(dataset, self.rate, self.position, self.transform, self.noise_seed)
        if len(found):
            found[0]  # an image that cannot be corrupted is told of now
        return found


@final
class _Corrupted(View):
    """A dataset with corrupted images; the kinds are drawn once, the noise of an image is a function of its id."""

    def __init__(
        self,
        dataset: Dataset[Any],
        rate: float,
        position: int | str,
        transform: Callable[[Any], Any] | None,
        noise_seed: int,
    ) -> None:
        super().__init__(dataset, position)
        self.transform, self.noise_seed = transform, noise_seed
        self.corruption = draw_corruptions(len(self), rate, make_generator(noise_seed, 0, "corruption"))
        self.corrupted = self.corruption >= 0

    def replace(self, index: int, part: Any) -> Any:
        """Return a sample's image."""
        is_pil = hasattr(part, "getbands")
        if not is_pil and not (isinstance(part, Tensor) and part.dtype == torch.uint8):
            got = str(part.dtype) if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(
                f"Expected a training image, {self.position!r} of a sample, to be a uint8 tensor (C, H, W) or a PIL "
                f"image, but got {got}. Build the data module without its transform, and give that to CorruptedImages "
                "as `transform`."
            )
        if (kind := int(self.corruption[index])) >= 0:
            corrupt = corruptions(make_generator(self.noise_seed, index, "noise"))[kind]
            part = _of_pil(part, corrupt) if is_pil else corrupt(part)
        return part if self.transform is None else self.transform(part)


def _of_pil(image: Any, corrupt: Callable[[Tensor], Tensor]) -> Any:
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    return to_pil_image(corrupt(pil_to_tensor(image)), image.mode)
