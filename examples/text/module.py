"""A small transformer that classifies texts."""

from __future__ import annotations

from typing import final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.classification import MulticlassAccuracy

from examples.text.data import PAD
from lightning_prune import WeightedLossMixin


@final
class TextModule(WeightedLossMixin, L.LightningModule):
    """Embeddings, an encoder, the mean over the words, a linear layer; trained from scratch.

    A sample's loss is the cross-entropy of its text's class: one number, however long the text is.

    Args:
        num_classes: Number of classes.
        vocabulary: Number of word ids, that of the data.
        max_length: Longest text, that of the data.
        width: Size of the embeddings.
        layers: Layers of the encoder.
        lr: Highest learning rate of AdamW, on a OneCycle schedule.
    """

    def __init__(
        self,
        num_classes: int = 4,
        vocabulary: int = 30_000,
        max_length: int = 128,
        width: int = 128,
        layers: int = 2,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.words = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))
        layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, words: Tensor) -> Tensor:
        padding = words == PAD
        states = self.words(words) + self.positions[: words.shape[1]]
        states = self.encoder(states, src_key_padding_mask=padding).masked_fill(padding.unsqueeze(2), 0)
        logits: Tensor = self.head(states.sum(1) / (~padding).sum(1, keepdim=True))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        words, targets = batch
        logits = self(words)
        return self.weighted_loss(F.cross_entropy(logits, targets, reduction="none"), logits=logits, targets=targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        words, targets = batch
        logits = self(words)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets), batch_size=len(targets), sync_dist=True)
        self.log("val_accuracy", self.accuracy, batch_size=len(targets), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)
        schedule = OneCycleLR(optimizer, self.lr, total_steps=int(self.trainer.estimated_stepping_batches) + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
