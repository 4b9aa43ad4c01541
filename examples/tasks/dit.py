"""A diffusion transformer, of timm's parts: Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn


@final
class Block(nn.Module):
    """Attention and a perceptron; the condition shifts, scales and gates both, at first by nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.perceptron = Mlp(width, 4 * width)
        self.condition = zero(nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        parts = self.condition(F.silu(condition))[:, None].chunk(6, dim=2)
        for layer, (shift, scale, gate) in ((self.attention, parts[:3]), (self.perceptron, parts[3:])):
            tokens = tokens + gate * layer(self.norm(tokens) * (1 + scale) + shift)
        return tokens


@final
class DiT(nn.Module):
    """From images, time steps and labels to images.

    Args:
        size: Side of the images.
        patch: Side of the patches.
        width: Size of the tokens.
        depth: Number of blocks.
        heads: Heads of their attention.
        labels: Number of labels.
    """

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, labels: int) -> None:
        super().__init__()
        self.grid, self.patch, self.width = size // patch, patch, width
        self.embedding = PatchEmbed(size, patch, 3, width)
        self.register_buffer("positions", build_sincos2d_pos_embed([self.grid, self.grid], width))
        self.positions: Tensor
        self.time, self.label = Mlp(width, width, act_layer=nn.SiLU), nn.Embedding(labels, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.condition, self.head = zero(nn.Linear(width, 2 * width)), zero(nn.Linear(width, 3 * patch**2))

    def forward(self, images: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        condition = self.time(waves(times, self.width)) + self.label(labels)
        tokens = self.embedding(images) + self.positions
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.condition(F.silu(condition))[:, None].chunk(2, dim=2)
        patches = self.head(self.norm(tokens) * (1 + scale) + shift).transpose(1, 2)
        return F.pixel_shuffle(patches.unflatten(2, (self.grid, self.grid)), self.patch)


def zero(layer: nn.Linear) -> nn.Linear:
    """Return a layer whose weights are set to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def waves(times: Tensor, width: int) -> Tensor:
    """Return cosines and sines ``(B, width)`` of time steps ``(B,)``."""
    rates = 10_000 ** (-torch.arange(width // 2, device=times.device) / (width // 2))
    angles = times[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
