"""SOP+ with any pruning method: a loss of two views of each image, whose own parameters absorb wrong labels."""

from __future__ import annotations

import math
from typing import Any, final

import lightning.pytorch as L
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import WeightedLossMixin
from lightning_prune.data import SOPLoss


@final
class SOPModule(WeightedLossMixin, L.LightningModule):
    """A ResNet for small images and the loss of SOP+; batches are ((weak, strong), targets, ids).

    A sample's loss is that of `SOPLoss`: of its weak view and its label, and the divergence of its two views. The
    balance is of the whole batch, which with pruning is of kept samples only: it moves all scores of a step alike.

    Args:
        num_samples: Length of the whole training set; a part of it may be pruned.
        num_classes: Number of classes.
        arch: A ResNet of timm.
        model_args: Further arguments of the model.
        lr: Highest learning rate of the network.
        weight_decay: Weight decay of the network: 5e-4 on CIFAR-10, 1e-3 on CIFAR-100.
        lr_u: Learning rate of SOP's u: 10 on CIFAR-10, 1 on CIFAR-100.
        lr_v: Learning rate of SOP's v: 100 on CIFAR-10, 10 on CIFAR-100.
        consistency: Weight of the divergence between the two views.
        balance: Weight of the cross entropy with the uniform distribution over classes.
    """

    def __init__(
        self,
        num_samples: int = 50_000,
        num_classes: int = 10,
        arch: str = "resnet18",
        model_args: dict[str, Any] | None = None,
        lr: float = 0.02,
        weight_decay: float = 5e-4,
        lr_u: float = 10.0,
        lr_v: float = 100.0,
        consistency: float = 0.9,
        balance: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = timm.create_model(arch, num_classes=num_classes, **(model_args or {}))
        self.net.conv1 = nn.Conv2d(3, self.net.conv1.out_channels, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()
        generator = torch.Generator().manual_seed(0)
        self.sop = SOPLoss(num_samples, num_classes, consistency=consistency, balance=balance, generator=generator)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        (weak, strong), targets, ids = batch
        features = self.net.forward_head(self.net.forward_features(torch.cat([weak, strong])), pre_logits=True)
        logits, strong_logits = self.net.get_classifier()(features).chunk(2)
        losses = self.sop(logits, targets, ids, strong_logits)
        return self.weighted_loss(losses, logits=logits, targets=targets, features=features[: len(targets)])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self.net(images)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets), sync_dist=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp: Any = self.hparams
        network = {"params": self.net.parameters(), "lr": hp.lr, "momentum": 0.9, "weight_decay": hp.weight_decay}
        optimizer = torch.optim.SGD([network, *self.sop.param_groups(hp.lr_u, hp.lr_v)])
        steps = self.trainer.estimated_stepping_batches + 1  # one more: the schedule is stepped after the last, too
        cosine = [lambda step: 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1.0)), *[lambda step: 1.0] * 2]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, cosine), "interval": "step"}}
