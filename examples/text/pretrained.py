"""Fine-tuning a transformer of Hugging Face that classifies texts or sounds."""

from __future__ import annotations

import re
from typing import Any, Literal, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForSequenceClassification

from examples.vision.module import warmup_cosine
from lightning_prune import WeightedLossMixin

HEADS = {"text": AutoModelForSequenceClassification, "audio": AutoModelForAudioClassification}
LAYER = re.compile(r"\blayers?\.(\d+)\.")


@final
class PretrainedClassifier(WeightedLossMixin, L.LightningModule):
    """A transformer with a new head; batches are ``(inputs, targets)``. Its own ``loss`` is a mean, so it is not used.

    A sample's loss is the cross-entropy of its text's or sound's class: one number, however long that is.

    Args:
        model: Name or folder of the model.
        kind: ``"text"`` or ``"audio"``.
        num_classes: Number of classes.
        pretrained: Start from its weights. False: from its configuration alone.
        lr: Learning rate of AdamW, on a cosine.
        weight_decay: Weight decay.
        layer_decay: Factor of the learning rate from a layer to the one below it. 1: one rate.
        warmup: Share of the run in which the rate rises.
    """

    def __init__(
        self,
        model: str = "bert-base-uncased",
        kind: Literal["text", "audio"] = "text",
        num_classes: int = 4,
        pretrained: bool = True,
        lr: float = 5e-5,
        weight_decay: float = 5e-4,
        layer_decay: float = 1.0,
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = AutoConfig.from_pretrained(model, num_labels=num_classes)
        if kind == "audio":
            config.mask_time_prob = config.mask_feature_prob = 0.0  # else losses of an epoch differ by the mask alone
        head = HEADS[kind]
        self.net = head.from_pretrained(model, config=config) if pretrained else head.from_config(config)
        if kind == "audio":
            self.net.freeze_feature_encoder()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: tuple[dict[str, Tensor], Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        logits = self.net(**inputs).logits
        return self.weighted_loss(F.cross_entropy(logits, targets, reduction="none"), logits=logits, targets=targets)

    def validation_step(self, batch: tuple[dict[str, Tensor], Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        logits = self.net(**inputs).logits
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets), batch_size=len(targets), sync_dist=True)
        self.log("val_accuracy", self.accuracy, batch_size=len(targets), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp: Any = self.hparams
        optimizer = torch.optim.AdamW(by_layer(self.net, hp.lr, hp.layer_decay), weight_decay=hp.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches) + 1
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step / steps, hp.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def by_layer(net: Any, lr: float, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups whose rate falls by ``decay`` from the head down: layers, then what lies under them."""
    depth = net.config.num_hidden_layers
    groups: dict[int, list[Tensor]] = {}
    body = f"{net.base_model_prefix}."
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            found = LAYER.search(name)
            above_layers = not name.startswith(body) or ".pooler." in name
            height = depth + 1 if above_layers else int(found[1]) + 1 if found else 0
            groups.setdefault(height, []).append(parameter)
    return [{"params": some, "lr": lr * decay ** (depth + 1 - height)} for height, some in sorted(groups.items())]
