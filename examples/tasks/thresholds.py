"""How confident a guess has to be to be trained on: the thresholds of FixMatch, FlexMatch and Dash."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn


class Threshold(nn.Module, ABC):
    """Base of the thresholds."""

    @abstractmethod
    def forward(self, guesses: Tensor, step: int) -> Tensor:
        """Return the threshold of each guess ``(B,)``, class ids, at a step of the run."""

    def note(self, step: int, labelled: Tensor, ids: Tensor, guesses: Tensor, confidence: Tensor) -> None:
        """Learn of a step: its loss on labels, and the ids, guesses and confidences of its unlabelled samples."""


@final
class Fixed(Threshold):
    """One for all: FixMatch, Sohn et al., NeurIPS 2020.

    Args:
        value: The threshold.
    """

    def __init__(self, value: float = 0.95) -> None:
        super().__init__()
        self.value = value

    def forward(self, guesses: Tensor, step: int) -> Tensor:
        return torch.full(guesses.shape, self.value, device=guesses.device)


@final
class Flexible(Threshold):
    """Lower for classes that few samples are surely guessed to be: FlexMatch, Zhang et al., NeurIPS 2021.

    Guesses are kept by id, so those of pruned samples count, too; each device knows its own only.

    Args:
        num_classes: Number of classes.
        num_unlabelled: Number of unlabelled samples.
        value: The highest threshold.
    """

    def __init__(self, num_classes: int = 100, num_unlabelled: int = 50_000, value: float = 0.95) -> None:
        super().__init__()
        self.num_classes, self.value = num_classes, value
        self.register_buffer("guesses", torch.zeros(num_unlabelled, dtype=torch.int64))  # last sure one + 1; 0: none
        self.guesses: Tensor

    def forward(self, guesses: Tensor, step: int) -> Tensor:
        counts = torch.zeros(self.num_classes + 1, device=guesses.device)
        counts.scatter_add_(0, self.guesses, torch.ones_like(self.guesses, dtype=counts.dtype))
        share = counts[1:] / counts.max()
        return (self.value * share / (2 - share))[guesses]

    def note(self, step: int, labelled: Tensor, ids: Tensor, guesses: Tensor, confidence: Tensor) -> None:
        self.guesses[ids] = torch.where(confidence >= self.value, guesses + 1, self.guesses[ids])


@final
class Falling(Threshold):
    """A bound on the guess's loss, ``-log confidence``, that falls: Dash, Xu et al., ICML 2021.

    It starts at the loss on labels, which alone are trained until then: here their moving mean, on each device.

    Args:
        warmup: Steps on labels alone.
        every: Steps after which the bound falls.
        gamma: What it is divided by.
        lowest: Where it stays in the end.
    """

    def __init__(self, warmup: int = 2048, every: int = 10_240, gamma: float = 1.27, lowest: float = 0.05) -> None:
        super().__init__()
        self.warmup, self.every, self.gamma, self.lowest = warmup, every, gamma, lowest
        self.register_buffer("start", torch.zeros(()))
        self.start: Tensor

    def forward(self, guesses: Tensor, step: int) -> Tensor:
        if step < self.warmup:
            return torch.full(guesses.shape, math.inf, device=guesses.device)
        bound = 1.0001 * self.start * self.gamma ** -((step - self.warmup) // self.every)
        return (-bound.clamp(min=self.lowest)).exp().expand(guesses.shape)

    def note(self, step: int, labelled: Tensor, ids: Tensor, guesses: Tensor, confidence: Tensor) -> None:
        if step < self.warmup:
            self.start.lerp_(labelled, 0.1 if step else 1.0)
