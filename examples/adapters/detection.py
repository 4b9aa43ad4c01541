"""Detection: torchvision's models sum their losses over the batch; here each image keeps its own."""

from __future__ import annotations

from typing import final

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from lightning_prune import WeightedLossMixin

Targets = list[dict[str, Tensor]]


@final
class PerImageRetinaNet(RetinaNet):  # type: ignore[misc]  # torchvision has no types
    """A RetinaNet whose losses are ``(B,)``; parameters and everything else are torchvision's.

    The network runs once on the whole batch. Only the losses are taken image by image, as torchvision's own heads do in
    a loop, dividing each image's sum by its own number of objects; their mean over the batch is torchvision's loss.

    FCOS divides by the objects of the whole batch: the same override (its `compute_loss` has one more argument) gives
    each image the mean over its own objects, which is not quite its training loss. In Faster R-CNN and its kin the
    losses are of boxes drawn over the batch; there, call the model once per image, at the price of batches.
    """

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        images = [
            super(PerImageRetinaNet, self).compute_loss(
                [targets[i]], {name: output[i : i + 1] for name, output in head_outputs.items()}, [anchors[i]]
            )
            for i in range(len(targets))
        ]
        return {name: torch.stack([losses[name] for losses in images]) for name in images[0]}


@final
class DetectionModule(WeightedLossMixin, L.LightningModule):
    """A RetinaNet on batches of a list of images ``(3, H, W)`` and a list of dictionaries of boxes and labels.

    Give the loader ``collate_fn=lambda samples: tuple(zip(*samples))``, as torchvision's references do.

    Args:
        num_classes: Number of classes, the background (0) among them.
        backbone: A ResNet of torchvision.
        pretrained: Start from the backbone's ImageNet weights, with its first layers and batch norms frozen.
        size: Shorter side of the images that the model sees.
        lr: Learning rate of SGD.
    """

    def __init__(
        self,
        num_classes: int = 91,
        backbone: str = "resnet50",
        pretrained: bool = True,
        size: int = 800,
        lr: float = 0.01,
    ) -> None:
        super().__init__()
        self.lr = lr
        pyramid = resnet_fpn_backbone(
            backbone_name=backbone,
            weights="DEFAULT" if pretrained else None,
            norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d,
            trainable_layers=3 if pretrained else 5,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        self.net = PerImageRetinaNet(pyramid, num_classes, min_size=size, max_size=2 * size)

    def training_step(self, batch: tuple[list[Tensor], Targets], batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self.net(list(images), list(targets))
        return self.weighted_loss(losses["classification"] + losses["bbox_regression"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
