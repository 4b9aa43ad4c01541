"""Pascal VOC's files for segmentation and detection; their modules are those of ``examples/adapters``.

``lightning-prune fit --config examples/tasks/segmentation.yaml`` or ``.../detection.yaml``

**The loss of a sample**: segmentation has losses ``(B, H, W)`` and a mask, since VOC's borders (255) do not count; a
sample's is the mean over its own labelled pixels. A detector's loss is the sum of its classes' and its boxes', which
torchvision adds up over the batch: `PerImageRetinaNet` keeps those of each image, divided by its own objects.

**Pruning** leaves out images that are segmented or detected well. No sample's loss depends on its batch, but for batch
normalisation.

Data: ``root/VOCdevkit/VOC2012`` with ``JPEGImages``, ``SegmentationClass``, ``Annotations`` and ``ImageSets``.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torchvision.datasets import VOCDetection, VOCSegmentation, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask

from examples.tasks.data import TaskData
from examples.vision.data import IMAGENET


def to_floats() -> list[v2.Transform]:
    """Return the last steps: images to [0, 1], everything else as it is."""
    return [v2.ToDtype({Image: torch.float32, "others": None}, scale=True), v2.ToPureTensor()]


@final
class SegmentationData(TaskData):
    """Images ``(B, 3, S, S)`` and the classes of their pixels ``(B, S, S)``, 255 at borders and beside the image.

    Args:
        root: Folder of ``VOCdevkit``.
        size: Side S of the random crop.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(self, root: str = "data", size: int = 480, batch_size: int = 16, num_workers: int = 4) -> None:
        super().__init__(root, batch_size, num_workers)
        self.size = size

    def dataset(self) -> Any:
        steps = [
            v2.ToImage(),
            v2.RandomResize(self.size // 2, self.size * 2),
            v2.RandomCrop(self.size, pad_if_needed=True, fill={Image: 0, Mask: 255}),
            v2.RandomHorizontalFlip(),
            *to_floats(),
        ]
        data = VOCSegmentation(self.root, image_set="train", transforms=v2.Compose(steps))
        return wrap_dataset_for_transforms_v2(data)

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*samples, strict=True)
        normal: Tensor = v2.functional.normalize(torch.stack(images), *map(list, IMAGENET))
        return normal, torch.cat(masks).long()


@final
class DetectionData(TaskData):
    """Lists of images ``(3, H, W)`` and of their boxes and labels; the detector scales and normalises by itself.

    Args:
        root: Folder of ``VOCdevkit``.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(self, root: str = "data", batch_size: int = 8, num_workers: int = 4) -> None:
        super().__init__(root, batch_size, num_workers)

    def dataset(self) -> Any:
        steps = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), *to_floats()])
        data = VOCDetection(self.root, image_set="train", transforms=steps)
        return wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))

    def collate(self, samples: list[Any]) -> Any:
        return tuple(map(list, zip(*samples, strict=True)))
