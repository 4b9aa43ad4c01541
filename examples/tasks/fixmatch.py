"""FixMatch, FlexMatch and Dash on CIFAR: few labels, many images.

``lightning-prune fit --config examples/tasks/fixmatch.yaml``, or ``.../flexmatch.yaml``, or ``.../dash.yaml``

**The loss of an unlabelled sample** is the cross-entropy of its strong view against the class that its weak view was
given, where that is confident. Where it is not, the sample has no loss: it is masked, so it counts 0, as in the papers,
and *is not recorded*. A recorded 0 would look like a sample that is learnt, and the hardest would be pruned first.

**Pruned is the unlabelled loader**, ``ScoreRegistry(loader="unlabelled")``: it is the longest, so its length is that of
the epoch, and the labelled one is repeated beside it (``"max_size_cycle"``). The few labels are trained in every step.
Left out are samples whose strong view agrees with a confident guess; those never confident yet stay. In Dash's warm-up
no guess is trained on, so nothing is recorded and nothing pruned.

Data: CIFAR's pickles, ``root/cifar-100-python``, downloaded if missing.
"""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from examples.tasks.thresholds import Fixed, Threshold
from examples.vision.module import VisionModule
from lightning_prune import WeightedLossMixin


@final
class FixMatch(WeightedLossMixin, L.LightningModule):
    """A classifier that learns from its own sure guesses.

    Args:
        num_classes: Number of classes.
        arch: A model of timm.
        model_args: Further arguments of it.
        cifar_stem: That of ResNets on images of 32 x 32.
        threshold: How confident a guess has to be; None: 0.95, FixMatch's.
        lr: Learning rate of SGD.
    """

    def __init__(
        self,
        num_classes: int = 100,
        arch: str = "resnet18",
        model_args: dict[str, Any] | None = None,
        cifar_stem: bool = True,
        threshold: Threshold | None = None,
        lr: float = 0.03,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.threshold = threshold or Fixed()
        self.net = VisionModule(arch, num_classes, model_args=model_args, cifar_stem=cifar_stem).net

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        (images, targets), ((weak, strong), _, ids) = batch["labelled"], batch["unlabelled"]
        logits, weak_logits, strong_logits = self.net(torch.cat([images, weak, strong])).split(
            [len(images), len(weak), len(strong)]
        )
        confidence, guesses = weak_logits.detach().softmax(1).max(1)
        trusted = confidence >= self.threshold(guesses, self.global_step)
        labelled = self.weighted_loss(F.cross_entropy(logits, targets, reduction="none"), loader="labelled")
        self.threshold.note(self.global_step, labelled.detach(), ids, guesses, confidence)
        losses = F.cross_entropy(strong_logits, guesses, reduction="none")
        return labelled + self.weighted_loss(losses, mask=trusted, loader="unlabelled")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, nesterov=True, weight_decay=1e-3)
