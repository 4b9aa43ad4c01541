"""Depth from images: KITTI. ``lightning-prune fit --config examples/tasks/depth.yaml``

**The loss of a sample** is the mean of a smooth L1 over its own measured pixels: a laser measures few, and 0 says that
nothing was. ``weighted_loss`` takes the losses ``(B, H, W)`` and the mask. Multi-view stereo has such a loss at each of
its scales: record the finest, and pass ``record=False`` with the others.

**Pruning** leaves out images whose depth is predicted well; no sample's loss depends on its batch.

Data: raw images, ``root/2011_09_26/<drive>/image_02/data/0000000005.png``, and ``data_depth_annotated``,
``root/train/<drive>/proj_depth/groundtruth/image_02/0000000005.png`` (16 bits, 256 to a metre).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from examples.tasks.data import TaskData
from examples.vision.data import IMAGENET, to_tensor
from lightning_prune import WeightedLossMixin


@final
class KittiDepth(Dataset[Any]):
    """Images ``(3, H, W)`` and depths ``(H, W)`` in metres, 0 where not measured; the bottom centre of both."""

    def __init__(self, root: Path, size: tuple[int, int]) -> None:
        self.root, self.size = root, size
        self.depths = sorted(root.glob("train/*/proj_depth/groundtruth/image_0[23]/*.png"))
        self.normalize = v2.Compose(to_tensor(*IMAGENET))

    def __len__(self) -> int:
        return len(self.depths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.depths[index]
        drive, camera = path.parents[3].name, path.parent.name
        image = self.normalize(Image.open(self.root / drive[:10] / drive / camera / "data" / path.name))
        depth = torch.from_numpy(np.array(Image.open(path), dtype=np.float32) / 256)
        top, left = depth.shape[0] - self.size[0], (depth.shape[1] - self.size[1]) // 2
        return image[:, top:, left : left + self.size[1]], depth[top:, left : left + self.size[1]]


@final
class KittiDepthData(TaskData):
    """KITTI's drives, in crops.

    Args:
        root: Folder of the drives, and of ``train``.
        size: Height and width of the crop, multiples of 14, at most those of the smallest image.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self, root: str, size: tuple[int, int] = (350, 1218), batch_size: int = 8, num_workers: int = 4
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.size = size

    def dataset(self) -> KittiDepth:
        return KittiDepth(self.root, self.size)


@final
class DepthModule(WeightedLossMixin, L.LightningModule):
    """Depth Anything, with its head for metres.

    Args:
        model_args: What differs from transformers' `DepthAnythingConfig`.
        lr: Learning rate of AdamW.
    """

    def __init__(self, model_args: dict[str, Any] | None = None, lr: float = 5e-5) -> None:
        super().__init__()
        self.lr = lr
        args = {"depth_estimation_type": "metric", "max_depth": 80, **(model_args or {})}
        self.net = DepthAnythingForDepthEstimation(DepthAnythingConfig(**args))
        for unused in (self.net.backbone.embeddings.mask_token, self.net.neck.fusion_stage.layers[0].residual_layer1):
            unused.requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, depths = batch
        losses = F.smooth_l1_loss(self.net(images).predicted_depth, depths, reduction="none")
        return self.weighted_loss(losses, mask=depths > 0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
