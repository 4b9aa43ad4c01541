"""Text from images. ``lightning-prune fit --config examples/tasks/captioning.yaml``, or ``.../scene_text.yaml``

Captions of COCO, or the words of MJSynth; both by an encoder of images and a decoder of texts. Videos: ``video.py``.

**The loss of a sample** is the mean cross-entropy of its own tokens: losses ``(B, T)``, and a mask that leaves out the
padding. What is trained is the mean over all tokens of the batch, ``normalize="token"``, as is usual for texts; a
score is the mean of a sample's own, so that a long text does not look hard for its length. An image of COCO has five
captions; each pair is a sample.

**Pruning** leaves out pairs whose text is predicted well; no sample's loss depends on its batch.

Data: ``root/annotations/captions_train2017.json`` and ``root/train2017/*.jpg``, or ``root/annotation_train.txt`` with
lines such as ``./2425/1/115_Lube_45484.jpg 45484``, the word being in the file's name.
"""

from __future__ import annotations

import json
from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

from examples.tasks.texts import END, PAD, VOCABULARY, ImagesWithTexts, ImageTextData
from lightning_prune import WeightedLossMixin


@final
class CocoCaptions(ImageTextData):
    """Images of COCO, each with one of its captions."""

    def dataset(self) -> ImagesWithTexts:
        annotations = json.loads((self.root / "annotations" / "captions_train2017.json").read_text())
        files = {image["id"]: self.root / "train2017" / image["file_name"] for image in annotations["images"]}
        pairs = [(files[one["image_id"]], one["caption"].strip()) for one in annotations["annotations"]]
        return ImagesWithTexts(pairs, self.size)


@final
class MJSynth(ImageTextData):
    """Images of single words."""

    def dataset(self) -> ImagesWithTexts:
        lines = (self.root / "annotation_train.txt").read_text().splitlines()
        paths = [self.root / line.rpartition(" ")[0] for line in lines]
        return ImagesWithTexts([(path, path.stem.split("_")[1]) for path in paths], self.size)


@final
class ImageToText(WeightedLossMixin, L.LightningModule):
    """A vision transformer and a GPT-2 that attends to its patches; to those of all frames of a video.

    Args:
        size: Height and width of the images, those of the data.
        encoder_args: What differs from transformers' `ViTConfig`.
        decoder_args: What differs from its `GPT2Config`.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self,
        size: tuple[int, int] = (224, 224),
        encoder_args: dict[str, Any] | None = None,
        decoder_args: dict[str, Any] | None = None,
        lr: float = 1e-4,
    ) -> None:
        super().__init__()
        self.lr = lr
        encoder = ViTModel(ViTConfig(image_size=size, **(encoder_args or {})), add_pooling_layer=False)
        ids = {"vocab_size": VOCABULARY, "bos_token_id": PAD, "eos_token_id": END}
        given = {**ids, "add_cross_attention": True, **(decoder_args or {})}
        self.net = VisionEncoderDecoderModel(encoder=encoder, decoder=GPT2LMHeadModel(GPT2Config(**given)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, tokens = batch
        before = F.pad(tokens[:, :-1], (1, 0), value=PAD)  # what each token is predicted from
        patches = self.net.encoder(images.flatten(0, -4)).last_hidden_state  # of images (B, [frames,] 3, H, W)
        patches = patches.unflatten(0, (len(tokens), -1)).flatten(1, 2)
        logits = self.net(encoder_outputs=(patches,), decoder_input_ids=before).logits
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return self.weighted_loss(losses, mask=tokens != PAD, normalize="token")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
