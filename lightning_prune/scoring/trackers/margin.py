"""Margin: the gap between the two largest predicted probabilities at the last visit."""

from __future__ import annotations

from typing import final

from torch import Tensor

from lightning_prune.scoring.trackers.tracker import Batch, Tracker


@final
class Margin(Tracker):
    """Largest minus second largest probability of the last epoch's prediction; low: uncertain, kept. Needs no labels.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.

    References:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020, arXiv:1906.11829.

    Example:
        >>> import torch
        >>> tracker = Margin(num_samples=1)
        >>> tracker.update(torch.tensor([0]), logits=torch.tensor([[0.6, 0.3, 0.1]]).log())
        >>> tracker.compute()
        tensor([0.3000])
    """

    high = "the finished model sees one class far ahead; a low one: unsure between two"
    keep = "low"
    needs = ("logits",)

    def __init__(self, num_samples: int | None = None) -> None:
        super().__init__(num_samples)

    def measure(self, batch: Batch) -> Tensor:
        """Return the gaps ``(B,)``."""
        largest = batch.probs.topk(2).values
        return largest[:, 0] - largest[:, 1]
