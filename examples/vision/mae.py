"""Masked autoencoders (He et al., CVPR 2022): pre-training of a vision transformer, without labels."""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from examples.vision.module import warmup_cosine
from lightning_prune import WeightedLossMixin


@final
class MAEPretraining(WeightedLossMixin, L.LightningModule):
    """Hides most patches of an image and predicts their pixels; a sample's loss is its mean over the hidden patches.

    Other patches are hidden in each epoch, so a sample's loss differs between epochs by that alone, too.
    `VisionModule(encoder=CHECKPOINT)` fine-tunes what was learnt.

    Args:
        arch: A vision transformer of timm with a class token.
        model_args: Further arguments of it.
        mask_ratio: Share of the patches that are hidden.
        decoder_width: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Heads of its attention.
        lr: Highest learning rate of AdamW, on a cosine.
        weight_decay: Weight decay, none on biases and norms.
        warmup: Share of the run in which the rate rises.
    """

    def __init__(
        self,
        arch: str = "vit_base_patch16_224",
        model_args: dict[str, Any] | None = None,
        mask_ratio: float = 0.75,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        lr: float = 2.4e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = timm.create_model(arch, num_classes=0, **(model_args or {}))
        width, (self.side, _) = self.encoder.embed_dim, self.encoder.patch_embed.patch_size
        grid = self.encoder.patch_embed.grid_size
        self.encoder.pos_embed = fixed_positions(grid, width)
        self.widen = nn.Linear(width, decoder_width)
        self.hidden = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.positions = fixed_positions(grid, decoder_width)
        blocks = [Block(decoder_width, decoder_heads, qkv_bias=True) for _ in range(decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(decoder_width), nn.Linear(decoder_width, 3 * self.side**2))

    def losses(self, images: Tensor) -> Tensor:
        """Return each image's loss ``(B,)``: the squared error of its hidden patches, each normalised by itself."""
        hp: Any = self.hparams
        patches = F.pixel_unshuffle(images, self.side).flatten(2).transpose(1, 2)  # (B, P, 3 * side ** 2)
        number = patches.shape[1]
        order = torch.rand(len(images), number, device=self.device).argsort(1)
        seen, hidden = order.tensor_split([int(number * (1 - hp.mask_ratio))], dim=1)

        start = (self.encoder.cls_token + self.encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = self.encoder.patch_embed(images) + self.encoder.pos_embed[:, 1:]
        tokens = torch.cat([start, at(tokens, seen)], 1)
        tokens = self.widen(self.encoder.norm(self.encoder.blocks(self.encoder.norm_pre(tokens))))

        filled = torch.cat([tokens[:, 1:], self.hidden.expand(*hidden.shape, -1)], 1)
        filled = torch.cat([tokens[:, :1], at(filled, order.argsort(1))], 1) + self.positions
        predicted = at(self.decoder(filled)[:, 1:], hidden)
        wanted = at(patches, hidden)
        variance, mean = torch.var_mean(wanted, dim=2, keepdim=True)
        return (predicted - (wanted - mean) / (variance + 1e-6).sqrt()).square().mean((1, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.weighted_loss(self.losses(batch[0]))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch[0]).mean(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp: Any = self.hparams
        optimizer = create_optimizer_v2(self, "adamw", hp.lr, hp.weight_decay, betas=(0.9, 0.95))
        steps = int(self.trainer.estimated_stepping_batches) + 1
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step / steps, hp.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fixed_positions(grid: tuple[int, int], width: int) -> nn.Parameter:
    """Return sines and cosines of the patches' places ``(1, 1 + P, width)``, zero for the class token; not trained."""
    patches = build_sincos2d_pos_embed(list(grid), width)
    return nn.Parameter(F.pad(patches, (0, 0, 1, 0))[None], requires_grad=False)


def at(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens ``(B, K, D)`` at places ``(B, K)``."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
