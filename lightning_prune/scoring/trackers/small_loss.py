"""Small loss: the loss at the last visit."""

from __future__ import annotations

from typing import final

from torch import Tensor

from lightning_prune.scoring.trackers.tracker import Batch, Tracker


@final
class SmallLoss(Tracker):
    """Loss of the last epoch; low: probably clean, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        num_epochs: Epochs of warm-up after which the score is frozen. None: the last epoch's loss. The papers take the
            loss after 10 epochs on CIFAR-10 and 30 on CIFAR-100.

    References:
        Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
        arXiv:1804.06872.

    Example:
        >>> import torch
        >>> tracker = SmallLoss(num_samples=2)
        >>> tracker.update(torch.tensor([1, 0]), losses=torch.tensor([0.5, 2.0]))
        >>> tracker.compute()
        tensor([2.0000, 0.5000])
    """

    high = "a large loss at the end: hard, or labelled wrong"
    keep = "low"
    needs = ("losses",)

    def __init__(self, num_samples: int | None = None, *, num_epochs: int | None = None) -> None:
        super().__init__(num_samples, num_epochs=num_epochs)

    def measure(self, batch: Batch) -> Tensor:
        """Return the losses ``(B,)``."""
        return batch.losses
