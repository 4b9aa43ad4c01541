"""Entropy of the prediction at the last visit."""

from __future__ import annotations

from typing import final

from torch import Tensor

from lightning_prune.scoring.trackers.tracker import Batch, Tracker


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of the softmax in nats, ``(B,)`` float32, as ``logsumexp(z) - sum_c p_c z_c``.

    Args:
        logits: ``(B, C)``.

    Example:
        >>> import torch
        >>> entropy(torch.zeros(1, 2))
        tensor([0.6931])
    """
    log_probs = logits.float().log_softmax(1)
    return -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(1)


@final
class Entropy(Tracker):
    """Entropy of the last epoch's prediction, in nats; high: uncertain, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.

    References:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020, arXiv:1906.11829.

    Example:
        >>> import torch
        >>> tracker = Entropy(num_samples=1)
        >>> tracker.update(torch.tensor([0]), logits=torch.zeros(1, 2))
        >>> tracker.compute()
        tensor([0.6931])
    """

    high = "the finished model spreads over many classes: unsure"
    needs = ("logits",)

    def __init__(self, num_samples: int | None = None) -> None:
        super().__init__(num_samples)

    def measure(self, batch: Batch) -> Tensor:
        """Return the entropies ``(B,)``."""
        return entropy(batch.logits)
