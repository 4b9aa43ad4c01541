"""A model of Hugging Face's transformers: its own `loss` is a mean, so take the losses from its logits."""

from __future__ import annotations

from typing import final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lightning_prune import WeightedLossMixin


@final
class HuggingFaceClassifier(WeightedLossMixin, L.LightningModule):
    """Fine-tunes a sequence classifier on batches of its tokenizer's dictionaries, with `labels`.

    Args:
        model: Name or folder of the model to fine-tune, or a configuration to start from scratch.
        num_labels: Number of classes.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self, model: str | PretrainedConfig = "bert-base-uncased", num_labels: int = 2, lr: float = 2e-5
    ) -> None:
        super().__init__()
        self.lr = lr
        if isinstance(model, str):
            self.net = AutoModelForSequenceClassification.from_pretrained(model, num_labels=num_labels)
        else:
            model.num_labels = num_labels
            self.net = AutoModelForSequenceClassification.from_config(model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}  # with them it would also reduce
        logits = self.net(**inputs).logits
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=batch["labels"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
