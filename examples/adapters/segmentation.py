"""Segmentation: a loss per pixel, a mask for the pixels that do not count."""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_prune import WeightedLossMixin

IGNORED = 255
"""The label of pixels that do not count: the borders in VOC, the void classes in Cityscapes."""


@final
class SegmentationModule(WeightedLossMixin, L.LightningModule):
    """A model of `torchvision.models.segmentation`.

    A sample's loss is the mean over its own labelled pixels, and a batch's loss the mean over its samples: an image
    with few labelled pixels weighs as much as another. (``F.cross_entropy`` without ``reduction="none"`` averages over
    the labelled pixels of the whole batch.)

    Args:
        arch: Name of the model.
        num_classes: Number of classes.
        lr: Learning rate of SGD.
        model_args: Further arguments of the model, such as ``{aux_loss: true}``.
    """

    def __init__(
        self,
        arch: str = "fcn_resnet50",
        num_classes: int = 21,
        lr: float = 0.02,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.lr = lr
        given = {"weights": None, "weights_backbone": None, **(model_args or {})}
        self.net = torchvision.models.get_model(arch, num_classes=num_classes, **given)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch  # (B, 3, H, W) and (B, H, W)
        outputs, mask = self.net(images), targets != IGNORED
        loss = self.weighted_loss(self.losses(outputs["out"], targets), mask=mask)
        if "aux" in outputs:  # weighted alike, but the score is the main loss
            loss = loss + 0.5 * self.weighted_loss(self.losses(outputs["aux"], targets), mask=mask, record=False)
        return loss

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the losses ``(B, H, W)``, 0 where ignored."""
        return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
