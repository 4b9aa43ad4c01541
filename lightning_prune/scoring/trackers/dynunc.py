"""Dyn-Unc (He et al., CVPR 2024): how much the target's probability moves within windows of epochs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.scoring.trackers.tracker import Batch, Tracker


class DynUnc(Tracker):
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
        >>> tracker = DynUnc(num_samples=1, window=2)
        >>> for prob in (0.5, 0.7, 0.9):
        ...     tracker.update(
        ...         torch.tensor([0]), logits=torch.tensor([[prob, 1 - prob]]).log(), targets=torch.tensor([0])
        ...     )
        ...     tracker.end_epoch()
        >>> tracker.compute()
        tensor([1.4142])
    """

    def __init__(
        self,
        num_samples: int | None = None,
        window: int = 10,
        *,
        num_epochs: int | None = None,
        drop_last_window: bool = False,
    ) -> None:
        check_int("window", window, low=2)
        if num_epochs is not None:
            check_int("num_epochs", num_epochs, low=window + drop_last_window)
        super().__init__(num_samples, num_epochs=num_epochs)
        self.window = window
        self.drop_last_window = drop_last_window
        self.min_epochs = window + drop_last_window

    def measure(self, batch: Batch) -> Tensor:
        """Return the targets' probabilities ``(B,)``."""
        return batch.probs.gather(1, batch.targets[:, None]).squeeze(1)

    def initial(self, num_samples: int, values: Tensor) -> dict[str, Tensor]:
        """Return no visits, no previous probabilities (NaN) and an empty sum over windows."""
        state = {
            "previous": torch.full((num_samples, self.window - 1), torch.nan, device=values.device),
            "sum": torch.zeros(num_samples, device=values.device),
            "visits": torch.zeros(num_samples, dtype=torch.int16, device=values.device),
        }
        if self.drop_last_window:
            state["last"] = torch.zeros(num_samples, device=values.device)
        return state

    def spread(self, window: Tensor) -> Tensor:
        """Return what one window ``(B, J)`` adds, ``(B,)``."""
        return 10 * window.std(1)

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Append the newest probability; add the window that it completes."""
        window = torch.cat([old["previous"], values[:, None]], 1)
        spread = self.spread(window).nan_to_num()  # NaN: not complete yet
        new = {"previous": window[:, 1:], "visits": old["visits"] + 1}
        if self.drop_last_window:
            return {**new, "sum": old["sum"] + old["last"], "last": spread}
        return {**new, "sum": old["sum"] + spread}

    def score(self) -> Tensor:
        """Return the means over the windows."""
        windows = (self.state["visits"] - self.min_epochs + 1).float()
        return self.state["sum"] / torch.where(windows > 0, windows, torch.nan)
