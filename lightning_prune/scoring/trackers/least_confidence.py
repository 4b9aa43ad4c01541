"""Least confidence: the largest predicted probability at the last visit."""

from __future__ import annotations

from typing import final

from torch import Tensor

from lightning_prune.scoring.trackers.tracker import Batch, Tracker


@final
class LeastConfidence(Tracker):
    """Largest probability of the last epoch's prediction; low: uncertain, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.

    Note:
        A benchmark takes the largest logit, and in one branch keeps the most confident samples; neither is done here.

    References:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020, arXiv:1906.11829.

    Example:
        >>> import torch
        >>> tracker = LeastConfidence(num_samples=1)
        >>> tracker.update(torch.tensor([0]), logits=torch.zeros(1, 4))
        >>> tracker.compute()
        tensor([0.2500])
    """

    high = "the finished model is sure of a class; a low one: unsure"
    keep = "low"
    needs = ("logits",)

    def __init__(self, num_samples: int | None = None) -> None:
        super().__init__(num_samples)

    def measure(self, batch: Batch) -> Tensor:
        """Return the largest probabilities ``(B,)``."""
        return batch.probs.amax(1)
