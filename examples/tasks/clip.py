"""Images and texts in one space, contrastively: Flickr30k. ``lightning-prune fit --config examples/tasks/clip.yaml``

**The loss of a sample**, a pair of an image and a text, is the mean of two cross-entropies: to find its text among
those of the batch, and its image among those of the batch.

**Its loss depends on its batch**, of which the others are its negatives. Pruned,

- negatives are drawn from what is kept only. A method's weights make up for a pair's own loss, but not for its part as
  a negative in the losses of others: no method is unbiased here;
- the losses that are compared were measured among other negatives. RePB compares those of one step only, which had the
  same, with ``window_batches: 1``, the choice here; other methods compare over the whole epoch;
- a loss grows with the logarithm of the batch size, so a shorter last batch would look easy. It is left out.

Data: ``root/results_20130124.token``, with lines ``1000092795.jpg#0<tab>Two young guys ...``, and
``root/flickr30k-images/*.jpg``. Two captions of one image that meet in a batch are taken for negatives, as in CLIP.
"""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from examples.tasks.texts import END, PAD, VOCABULARY, ImagesWithTexts, ImageTextData
from lightning_prune import WeightedLossMixin


@final
class Flickr30k(ImageTextData):
    """Images, each with one of its five captions."""

    def dataset(self) -> ImagesWithTexts:
        lines = (self.root / "results_20130124.token").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        pairs = [(self.root / "flickr30k-images" / name.split("#")[0], caption) for name, caption in rows]
        return ImagesWithTexts(pairs, self.size)


@final
class CLIP(WeightedLossMixin, L.LightningModule):
    """Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.

    Args:
        text_args: What differs from transformers' `CLIPTextConfig`.
        vision_args: What differs from its `CLIPVisionConfig`, which is ViT-B/32.
        width: Size of the common space.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self,
        text_args: dict[str, Any] | None = None,
        vision_args: dict[str, Any] | None = None,
        width: int = 512,
        lr: float = 5e-4,
    ) -> None:
        super().__init__()
        self.lr = lr
        ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": PAD, "eos_token_id": END}
        text = {**ids, "max_position_embeddings": 128, **(text_args or {})}
        self.net = CLIPModel(CLIPConfig(text_config=text, vision_config=vision_args or {}, projection_dim=width))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, tokens = batch
        logits = self.net(pixel_values=images, input_ids=tokens).logits_per_image  # causal: no mask of the padding
        own = torch.arange(len(logits), device=logits.device)
        find_text = F.cross_entropy(logits, own, reduction="none")
        find_image = F.cross_entropy(logits.T, own, reduction="none")
        return self.weighted_loss((find_text + find_image) / 2)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.2)
