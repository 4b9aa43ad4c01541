"""What scores share that add up, over windows of epochs, how much the target's probability moves."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.scoring.trackers.tracker import Batch, Tracker


class WindowedTracker(Tracker):
    """Base of scores that are a mean, over all windows of J visits, of a window's :meth:`spread`.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        window: Epochs J in a window, at least 2.
        num_epochs: Epochs, from the first, that are scored. None: all.
        drop_last_window: Leave out the window that ends at the last visit.

    Raises:
        ValueError: If an argument is out of range.
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
            "previous": torch.full(
                (num_samples, self.window - 1), torch.nan, dtype=torch.float32, device=values.device
            ),
            "sum": torch.zeros(num_samples, dtype=torch.float32, device=values.device),
            "visits": torch.zeros(num_samples, dtype=torch.int16, device=values.device),
        }
        if self.drop_last_window:
            state["last"] = torch.zeros(num_samples, dtype=torch.float32, device=values.device)
        return state

    @abstractmethod
    def spread(self, window: Tensor) -> Tensor:
        """Return what one window ``(B, J)`` of probabilities adds, ``(B,)``; NaN: it is not complete yet."""

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Append the newest probability; add the window that it completes."""
        window = torch.cat([old["previous"], values[:, None]], 1)
        spread = self.spread(window).nan_to_num()
        new = {"previous": window[:, 1:], "visits": old["visits"] + 1}
        if self.drop_last_window:
            return {**new, "sum": old["sum"] + old["last"], "last": spread}
        return {**new, "sum": old["sum"] + spread}

    def score(self) -> Tensor:
        """Return the means over the windows."""
        windows = (self.state["visits"] - self.min_epochs + 1).float()
        return self.state["sum"] / torch.where(windows > 0, windows, torch.nan)
