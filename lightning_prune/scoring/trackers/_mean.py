"""What scores share that are a mean over the first epochs."""

from __future__ import annotations

from abc import ABC

import torch
from torch import Tensor

from lightning_prune.scoring.trackers.tracker import Tracker


class MeanTracker(Tracker, ABC):
    """Base of scores that are a sample's mean measurement over its visits in the first epochs.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        num_epochs: Epochs, from the first, that are averaged.
    """

    def __init__(self, num_samples: int | None = None, num_epochs: int = 10) -> None:
        super().__init__(num_samples, num_epochs=num_epochs)

    def initial(self, num_samples: int, values: Tensor) -> dict[str, Tensor]:
        """Return empty sums and visit counts."""
        counts = torch.zeros(num_samples, dtype=torch.int16, device=values.device)
        return {"sum": torch.zeros(num_samples, dtype=torch.float32, device=values.device), "visits": counts}

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Add a visit."""
        return {"sum": old["sum"] + values, "visits": old["visits"] + 1}

    def score(self) -> Tensor:
        """Return the mean over the visits (0 / 0 = NaN: none)."""
        return self.state["sum"] / self.state["visits"]
