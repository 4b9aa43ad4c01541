"""EL2N (Paul et al., NeurIPS 2021): the length of the error vector, early in training."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.scoring.trackers._mean import MeanTracker
from lightning_prune.scoring.trackers.tracker import Batch


def error_norm(probs: Tensor, targets: Tensor) -> Tensor:
    """Return ``|| p - onehot(y) ||_2`` in [0, sqrt 2], ``(B,)`` float32.

    Args:
        probs: Predicted probabilities ``(B, C)``.
        targets: Class ids ``(B,)``, int64.

    Example:
        >>> error_norm(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor([0.7071])
    """
    targets = targets[:, None]
    errors = probs.float().scatter_add(1, targets, -torch.ones_like(targets, dtype=torch.float32))
    norms: Tensor = torch.linalg.vector_norm(errors, dim=1)
    return norms


@final
class EL2N(MeanTracker):
    """Mean error norm over the first epochs; high: hard or mislabelled, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        num_epochs: Epochs, from the first, that are averaged. Default 10, as in the benchmarks that train one model.

    Note:
        The paper averages ten runs at one early checkpoint; this is the one-run form of the later benchmarks. A sample
        not visited in some epoch is averaged over those in which it was.

    References:
        Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training", NeurIPS 2021,
        arXiv:2107.07075.

    Example:
        >>> tracker = EL2N(num_samples=1)
        >>> tracker.update(torch.tensor([0]), logits=torch.zeros(1, 2), targets=torch.tensor([1]))
        >>> tracker.compute()
        tensor([0.7071])
    """

    high = "far from its label in the first epochs: hard, or labelled wrong"

    def measure(self, batch: Batch) -> Tensor:
        """Return the error norms ``(B,)``."""
        return error_norm(batch.probs, batch.targets)
