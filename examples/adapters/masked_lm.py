"""Masked language modelling: a loss per token, a mask for the tokens that were hidden.

A text's score is the mean over its own hidden tokens. Others are hidden in each epoch, so it tells of these, too.
"""

from __future__ import annotations

from typing import final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_prune import WeightedLossMixin

IGNORED = -100
"""The target of tokens that are not predicted, as in Hugging Face's collators."""


def hide_tokens(tokens: Tensor, mask_id: int, special: int, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """Hide tokens as in BERT: of the chosen, 80 % become ``mask_id``, 10 % a random token, 10 % stay.

    Args:
        tokens: ``(B, T)``, int64.
        mask_id: Id of the mask.
        special: Ids below this are never chosen, nor drawn.
        share: Probability with which a token is chosen.

    Returns:
        What the model sees, and what it is to predict: `IGNORED` where nothing was chosen. Both ``(B, T)``.
    """
    chosen = (torch.rand(tokens.shape, device=tokens.device) < share) & (tokens >= special)
    action = torch.rand(tokens.shape, device=tokens.device)
    random_tokens = torch.randint(special, mask_id, tokens.shape, device=tokens.device)
    seen = torch.where(chosen & (action < 0.8), mask_id, tokens)
    seen = torch.where(chosen & (action >= 0.9), random_tokens, seen)
    return seen, torch.where(chosen, tokens, IGNORED)


@final
class MaskedLMModule(WeightedLossMixin, L.LightningModule):
    """A transformer on batches ``(B, T)`` of token ids; the last id of the vocabulary is the mask, 0 pads.

    A sample's loss is the mean over its own hidden tokens. A text of which none was hidden counts 0 and is not
    recorded: its score stays that of the last epoch, and no method mistakes it for one that was learnt.

    Args:
        vocabulary: Number of token ids.
        special: Ids below this (padding, start, end, ...) are never hidden.
        max_length: Longest text.
        width: Size of the embeddings.
        layers: Layers of the encoder.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self,
        vocabulary: int = 30_000,
        special: int = 3,
        max_length: int = 128,
        width: int = 256,
        layers: int = 4,
        lr: float = 5e-4,
    ) -> None:
        super().__init__()
        self.lr, self.special, self.mask_id = lr, special, vocabulary - 1
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))
        layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        logits: Tensor = self.head(self.encoder(states, src_key_padding_mask=tokens == 0))
        return logits

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        seen, targets = hide_tokens(batch, self.mask_id, self.special)
        logits = self(seen)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)  # (B, T)
        return self.weighted_loss(losses, mask=targets != IGNORED)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)
