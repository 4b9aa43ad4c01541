"""Dyn-Unc (He et al., CVPR 2024): how much the target's probability moves within windows of epochs."""

from __future__ import annotations

from typing import final

from torch import Tensor

from lightning_prune.scoring.trackers._windowed import WindowedTracker


@final
class DynUnc(WindowedTracker):
    """Mean over all windows of ``10 std(q)``, q the target's probability; high: uncertain over time, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        window: Epochs J in a window, at least 2.
        num_epochs: Epochs, from the first, that are scored. None: all.
        drop_last_window: Leave out the window that ends at the last visit, as the authors' code does.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The standard deviation is the unbiased one. The authors measure q in a second forward pass on a clean view;
        here, as in later benchmarks, it is that of the training pass.

    References:
        He et al., "Large-scale Dataset Pruning with Dynamic Uncertainty", CVPR 2024, arXiv:2306.05175.

    Example:
        >>> import torch
        >>> tracker = DynUnc(num_samples=1, window=2)
        >>> for prob in (0.5, 0.7, 0.9):
        ...     tracker.update(
        ...         torch.tensor([0]), logits=torch.tensor([[prob, 1 - prob]]).log(), targets=torch.tensor([0])
        ...     )
        ...     tracker.end_epoch()
        >>> tracker.compute()
        tensor([1.4142])
    """

    high = "its label's probability varies from epoch to epoch"

    def spread(self, window: Tensor) -> Tensor:
        """Return what one window ``(B, J)`` adds, ``(B,)``."""
        return 10 * window.std(1)
