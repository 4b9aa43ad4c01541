"""An image classifier from timm that any pruning method can train: the module of every vision recipe."""

from __future__ import annotations

import math
from typing import Any, Literal, final

import lightning.pytorch as L
import timm
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from lightning_prune import WeightedLossMixin


@final
class VisionModule(WeightedLossMixin, L.LightningModule):
    """A model, its loss per sample, its optimizer and its schedule, all by name.

    Args:
        arch: A model of timm, such as ``"resnet18"`` or ``"swin_tiny_patch4_window7_224"``.
        num_classes: Number of classes.
        pretrained: Start from timm's weights, downloaded on first use.
        model_args: Further arguments of the model, such as ``{drop_path_rate: 0.2}``.
        cifar_stem: For ResNets on images of 32 x 32: a first convolution of 3 x 3 at stride 1, no pooling.
        label_smoothing: Share of a label that is spread over all classes.
        mixup: Parameter of MixUp; 0: off. A sample's loss is then that of its mixture with its neighbour.
        cutmix: Parameter of CutMix; 0: off. With both, each batch draws one of them.
        optimizer: timm's name: ``"momentum"`` (SGD), ``"sgd"`` (with Nesterov's momentum), ``"lars"``, ``"lamb"``,
            ``"adamw"``, ...
        lr: Highest learning rate.
        weight_decay: Weight decay.
        decay_all: Decay biases and normalisation parameters too. LARS adapts only what it decays.
        schedule: ``"onecycle"``: up and down on cosines. ``"cosine"``: linear warm-up, then down. Both end at the
            run's last step. ``"halfway"``: a tenth from half the epochs on.
        warmup: Share of the run in which the rate rises.
    """

    def __init__(
        self,
        arch: str = "resnet18",
        num_classes: int = 10,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
        cifar_stem: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        optimizer: str = "momentum",
        lr: float = 0.2,
        weight_decay: float = 5e-4,
        decay_all: bool = True,
        schedule: Literal["onecycle", "cosine", "halfway"] = "onecycle",
        warmup: float = 0.3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, **(model_args or {}))
        if cifar_stem:
            self.net.conv1 = nn.Conv2d(3, self.net.conv1.out_channels, 3, padding=1, bias=False)
            self.net.maxpool = nn.Identity()
        mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch if self.mix is None else self.mix(*batch)  # mixed targets are (B, C)
        logits = self(images)
        hp: Any = self.hparams
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=hp.label_smoothing)
        return self.weighted_loss(losses, logits=logits, targets=targets if targets.dim() == 1 else None)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets), sync_dist=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp: Any = self.hparams
        optimizer = create_optimizer_v2(
            self.net, hp.optimizer, hp.lr, hp.weight_decay, momentum=0.9, filter_bias_and_bn=not hp.decay_all
        )
        if hp.schedule == "halfway":
            return [optimizer], [MultiStepLR(optimizer, [(self.trainer.max_epochs or 0) // 2], gamma=0.1)]
        steps = (
            int(self.trainer.estimated_stepping_batches) + 1
        )  # one more: the schedule is stepped after the last, too
        if hp.schedule == "onecycle":
            schedule: LRScheduler = OneCycleLR(optimizer, hp.lr, total_steps=steps, pct_start=hp.warmup)
        else:
            schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step / steps, hp.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmup_cosine(done: float, warmup: float) -> float:
    """Return the factor of the learning rate after the share ``done`` of the run."""
    if done < warmup:
        return max(done / warmup, 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * min((done - warmup) / (1 - warmup), 1.0))
