"""Digits with wrong labels that are known to be wrong."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from examples.digits.task import DigitsData
from lightning_prune.data import inject_label_noise


class NoisyDigits(DigitsData):
    """Digits of which a share of the training labels is wrong; the dataset's ``flipped`` ``(n,)`` says which.

    Args:
        noise: Kind of noise, see `lightning_prune.data.inject_label_noise`.
        rate: Share of wrong labels.
        batch_size: Samples in a batch.
        split_seed: Seed of the split and of the noise.
    """

    def __init__(self, noise: str = "symmetric", rate: float = 0.4, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__(batch_size, split_seed)
        self.noise = noise
        self.rate = rate

    def setup(self, stage: str) -> None:
        super().setup(stage)
        images, labels = self.train.tensors
        generator = torch.Generator().manual_seed(self.split_seed)
        noisy, flipped = inject_label_noise(labels, self.noise, self.rate, 10, generator=generator)
        self.train = TensorDataset(images, noisy)
        self.train.flipped = flipped
