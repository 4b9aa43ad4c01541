"""Forgetting events (Toneva et al., ICLR 2019): how often a sample went from right to wrong."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice
from lightning_prune.scoring.trackers.tracker import Batch, Tracker

_VISITED, _CORRECT, _LEARNED = 1, 2, 4


@final
class Forgetting(Tracker):
    """Number of epochs with a wrong prediction right after one with a right prediction; high: hard to keep, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        never_learned: Score of samples never predicted right. ``"inf"``: kept first, as in the paper. ``"zero"``: their
            count, so they are pruned first, as in the code of several later benchmarks; with label noise the difference
            is large.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        Counts have many ties: :func:`~lightning_prune.scoring.select_top` breaks them by index, or at random if given a
        generator. Ties of the prediction go to the lower class.

    References:
        Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019,
        arXiv:1812.05159.

    Example:
        >>> tracker = Forgetting(num_samples=1)
        >>> for logit in (1.0, -1.0, 1.0, -1.0):
        ...     tracker.update(torch.tensor([0]), logits=torch.tensor([[logit, 0.0]]), targets=torch.tensor([0]))
        ...     tracker.end_epoch()
        >>> tracker.compute()
        tensor([2.])
    """

    high = "learnt and forgotten often, or (inf) never learnt: hard, or labelled wrong"

    def __init__(self, num_samples: int | None = None, never_learned: Literal["inf", "zero"] = "inf") -> None:
        check_choice("never_learned", never_learned, ("inf", "zero"))
        super().__init__(num_samples)
        self.never_learned = never_learned

    def measure(self, batch: Batch) -> Tensor:
        """Return 1 for a right prediction, 0 for a wrong one, NaN where a logit is, ``(B,)``."""
        correct = (batch.logits.argmax(1) == batch.targets).float()
        return torch.where(batch.logits.isnan().any(1), torch.nan, correct)

    def initial(self, num_samples: int, values: Tensor) -> dict[str, Tensor]:
        """Return zero events, and no flag set."""
        return {
            "events": torch.zeros(num_samples, dtype=torch.int16, device=values.device),
            "flags": torch.zeros(num_samples, dtype=torch.uint8, device=values.device),
        }

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Count an event if the last visit was right and this one is wrong."""
        correct = values == 1
        forgotten = (old["flags"] & _CORRECT > 0) & ~correct
        learned = (old["flags"] & _LEARNED > 0) | correct
        return {"events": old["events"] + forgotten, "flags": _VISITED + _CORRECT * correct + _LEARNED * learned}

    def score(self) -> Tensor:
        """Return the counts; infinite or zero for what was never learned."""
        flags, events = self.state["flags"], self.state["events"].float()
        if self.never_learned == "inf":
            events = torch.where(flags & _LEARNED > 0, events, torch.inf)
        return torch.where(flags & _VISITED > 0, events, torch.nan)
