"""An image classifier from timm that any pruning method can train: the module of every vision recipe."""

from __future__ import annotations

import math
from typing import Any, Literal, final

import lightning.pytorch as L
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.models.vgg import VGG
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR, StepLR
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from lightning_prune import WeightedLossMixin


@final
class VisionModule(WeightedLossMixin, L.LightningModule):
    """A model, its loss per sample, its optimizer and its schedule, all by name.

    A sample's loss is the cross-entropy of its label. It depends on the batch by batch normalisation, and with MixUp or
    CutMix by the neighbour that it is mixed with.

    Args:
        arch: A model of timm, such as ``"resnet18"`` or ``"swin_tiny_patch4_window7_224"``, or one of torchvision, such
            as ``"torchvision/shufflenet_v2_x1_0"``.
        num_classes: Number of classes.
        pretrained: Start from timm's or torchvision's weights, downloaded on first use.
        encoder: Checkpoint of `MAEPretraining` to start from; its encoder is a model of the same ``arch``.
        model_args: Further arguments of the model, such as ``{drop_path_rate: 0.2}``.
        cifar_stem: For convolutional networks on images of 32 x 32: see `for_small_images`.
        label_smoothing: Share of a label that is spread over all classes.
        mixup: Parameter of MixUp; 0: off. A sample's loss is then that of its mixture with its neighbour.
        cutmix: Parameter of CutMix; 0: off. With both, each batch draws one of them.
        bce: A sample's loss is the mean of binary cross-entropies over the classes, and not the cross-entropy.
        optimizer: timm's name: ``"momentum"`` (SGD), ``"sgd"`` (with Nesterov's momentum), ``"lars"``, ``"lamb"``,
            ``"adamw"``, ...
        lr: Highest learning rate.
        weight_decay: Weight decay.
        decay_all: Decay biases and normalisation parameters too. LARS adapts only what it decays.
        layer_decay: Factor of the learning rate from a layer to the one below it, for fine-tuning. None: one rate.
        schedule: ``"onecycle"``: up and down on cosines. ``"cosine"``: linear warm-up, then down. Both end at the
            run's last step. ``"halfway"``: a tenth from half the epochs on. ``"steps"``: a tenth every 30 epochs.
        warmup: Share of the run in which the rate rises.
    """

    def __init__(
        self,
        arch: str = "resnet18",
        num_classes: int = 10,
        pretrained: bool = False,
        encoder: str | None = None,
        model_args: dict[str, Any] | None = None,
        cifar_stem: bool = False,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        bce: bool = False,
        optimizer: str = "momentum",
        lr: float = 0.2,
        weight_decay: float = 5e-4,
        decay_all: bool = True,
        layer_decay: float | None = None,
        schedule: Literal["onecycle", "cosine", "halfway", "steps"] = "onecycle",
        warmup: float = 0.3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = build(arch, num_classes, pretrained, model_args or {})
        if encoder is not None:
            load_encoder(self.net, encoder)
        if cifar_stem:
            for_small_images(self.net)
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
        if hp.bce:
            wanted = targets if targets.dim() == 2 else torch.zeros_like(logits).scatter_(1, targets[:, None], 1)
            return self.weighted_loss(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none"))  # (B, C)
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
            self.net,
            hp.optimizer,
            hp.lr,
            hp.weight_decay,
            momentum=0.9,
            filter_bias_and_bn=not hp.decay_all,
            layer_decay=hp.layer_decay,
        )
        if hp.schedule == "halfway":
            return [optimizer], [MultiStepLR(optimizer, [(self.trainer.max_epochs or 0) // 2], gamma=0.1)]
        if hp.schedule == "steps":
            return [optimizer], [StepLR(optimizer, 30, gamma=0.1)]
        steps = (
            int(self.trainer.estimated_stepping_batches) + 1
        )  # one more: the schedule is stepped after the last, too
        if hp.schedule == "onecycle":
            schedule: LRScheduler = OneCycleLR(optimizer, hp.lr, total_steps=steps, pct_start=hp.warmup)
        else:
            schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step / steps, hp.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build(arch: str, num_classes: int, pretrained: bool, model_args: dict[str, Any]) -> Any:
    """Return a model of timm, or of torchvision where its name says so."""
    library, _, name = arch.rpartition("/")
    if library != "torchvision":
        return timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, **model_args)
    net = torchvision.models.get_model(name, num_classes=num_classes, **model_args)
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
        head = {key for key, value in net.state_dict().items() if value.shape != weights[key].shape}
        net.load_state_dict({key: value for key, value in weights.items() if key not in head}, strict=False)
    return net


def load_encoder(net: nn.Module, path: str) -> None:
    """Load the encoder of a checkpoint of `MAEPretraining`; only the head, and the norm before it, start afresh.

    Raises:
        ValueError: If the checkpoint has no such encoder.
    """
    state = torch.load(path, map_location="cpu", weights_only=False)[
        "state_dict"
    ]  # Lightning pickles more than tensors
    found = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    missing, unexpected = net.load_state_dict(found, strict=False)
    missing = [key for key in missing if not key.startswith(("head.", "fc_norm."))]
    unexpected = [key for key in unexpected if not key.startswith("norm.")]  # of the class token, where means are taken
    if missing or unexpected:
        raise ValueError(
            f"Expected {path} to be a checkpoint of `MAEPretraining` with this `arch`, but it lacks {missing[:3]} and "
            f"has {unexpected[:3]}."
        )


def for_small_images(net: Any) -> None:
    """Have a network for 224 x 224 see 32 x 32: a first convolution of 3 x 3 at stride 1, no pooling after it.

    Of a VGG the hidden layers go: its head sees the last convolution's channels.
    """
    convolution = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    if convolution.kernel_size != (3, 3):
        net.conv1 = nn.Conv2d(3, convolution.out_channels, 3, padding=1, bias=False)
    convolution.stride = (1, 1)
    if hasattr(net, "maxpool"):
        net.maxpool = nn.Identity()
    if isinstance(net, VGG):
        net.pre_logits, net.head.fc = nn.Identity(), nn.Linear(net.num_features, net.num_classes)


def warmup_cosine(done: float, warmup: float) -> float:
    """Return the factor of the learning rate after the share ``done`` of the run."""
    if done < warmup:
        return max(done / warmup, 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * min((done - warmup) / (1 - warmup), 1.0))
