"""DUAL (Cho et al., 2025): uncertainty times difficulty, from the first part of training only."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.scoring.trackers._windowed import WindowedTracker


@final
class DUAL(WindowedTracker):
    """Mean over all windows of ``10 std(q) (1 - mean(q))``, q the target's probability; high: kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        window: Epochs J in a window, at least 2.
        num_epochs: Epochs T, from the first, that are scored: 30 on CIFAR, 60 on ImageNet.

    Attributes:
        difficulty_mean: Mean of q over the T epochs ``(n,)``, for :func:`~lightning_prune.scoring.beta_sampling`.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The published code averages q over 30 epochs also where T is 60; here over the T epochs.

    References:
        Cho et al., "Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction
        Uncertainty", ICML 2025, arXiv:2502.06905.

    Example:
        >>> tracker = DUAL(num_samples=1, window=2)
        >>> for prob in (0.5, 0.7, 0.9):
        ...     tracker.update(
        ...         torch.tensor([0]), logits=torch.tensor([[prob, 1 - prob]]).log(), targets=torch.tensor([0])
        ...     )
        ...     tracker.end_epoch()
        >>> tracker.compute(), tracker.difficulty_mean
        (tensor([0.4243]), tensor([0.7000]))
    """

    high = "hard, and its label's probability varies from epoch to epoch"

    def __init__(self, num_samples: int | None = None, window: int = 10, num_epochs: int | None = 30) -> None:
        super().__init__(num_samples, window, num_epochs=num_epochs)

    def initial(self, num_samples: int, values: Tensor) -> dict[str, Tensor]:
        """Return the state of the windows, and an empty sum of q."""
        return {
            **super().initial(num_samples, values),
            "prob_sum": torch.zeros(num_samples, dtype=torch.float32, device=values.device),
        }

    def spread(self, window: Tensor) -> Tensor:
        """Return what one window ``(B, J)`` adds, ``(B,)``."""
        return 10 * window.std(1) * (1 - window.mean(1))

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Append the newest probability; add the window that it completes."""
        return {**super().fold(old, values), "prob_sum": old["prob_sum"] + values}

    def columns(self) -> dict[str, Tensor]:
        """Return ``difficulty_mean``."""
        return {"difficulty_mean": self.difficulty_mean}

    @property
    def difficulty_mean(self) -> Tensor:
        """Mean target probability over all visits ``(n,)``, float32; NaN where there is none."""
        return self.state["prob_sum"] / self.state["visits"]
