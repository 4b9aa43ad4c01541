"""TDDS (Zhang et al., CVPR 2024): how much a sample's learning speed varies, window by window."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_int, check_ratio
from lightning_prune.scoring.trackers.tracker import Batch, Tracker

EPS = 1e-8
_EXACT_UP_TO = 2**13  # elements; a table of 32 KiB has nothing to gain from half precision


def tdds(probs: Tensor, window: int = 10, decay: float = 0.9) -> Tensor:
    """Return the TDDS scores of whole trajectories; what :class:`TDDS` computes one visit at a time.

    ``d_t = sum_c | p_t[c] (log(p_t[c] + 1e-8) - log(p_{t-1}[c] + 1e-8)) |`` for t = 1 .. T-1. The w-th of the T-K+1
    windows of K epochs has K-1 differences; ``R_w`` is the L2 norm of their deviations from their mean (depth one), and
    the score ``sum_w a (1-a)^(T-K-w) R_w`` favours the last windows (depth two).

    Args:
        probs: Predicted probabilities ``(T, n, C)`` by epoch.
        window: Epochs K in a window, at least 3 and at most T.
        decay: Weight a of the newest window, in (0, 1].

    Returns:
        Scores ``(n,)``, in the dtype of ``probs``, high: kept.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_ratio("decay", decay, closed_low=False, closed_high=True)
    check_int("window", window, low=3, high=len(probs))
    logs = (probs + EPS).log()
    steps = (probs[1:] * (logs[1:] - logs[:-1])).abs().sum(2)
    windows = steps.unfold(0, window - 1, 1)
    spread: Tensor = torch.linalg.vector_norm(windows - windows.mean(2, keepdim=True), dim=2)
    ages = torch.arange(len(spread) - 1, -1, -1, device=probs.device, dtype=probs.dtype)
    return (decay * torch.pow(1 - decay, ages[:, None]) * spread).sum(0)


@final
class TDDS(Tracker):
    """Temporal dual-depth score; high: the sample's contribution varies much over training, kept. Needs no labels.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        num_classes: C. None: that of the first logits.
        window: Epochs K in a window, at least 3 (two would give zero for every sample). The paper uses 10.
        decay: Weight a of the newest window, in (0, 1]. The paper uses 0.9: only about the last three windows matter.
        num_epochs: Epochs T, from the first, that are scored. None: all. The paper tunes T with the prune ratio: on
            CIFAR-10 70, 90, 80, 30, 10 for 30, 50, 70, 80, 90 % (the last with K = 5).
        precision: How the previous epoch's log-probabilities are stored. ``"float16"``: 2 C bytes a sample, scores
            within 0.5 %, ranks unchanged. ``"float32"``: 4 C bytes, equal to :func:`tdds` to 2e-6. ``"auto"``: float16,
            but float32 while the whole table is below 32 KiB.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        Per sample there are the previous log-probabilities, the last K-2 differences and the running score; a visit
        costs O(C + K), and :meth:`compute` is valid after any epoch from the K-th. Differences are between consecutive
        visits: an epoch that a sample missed is skipped, where the published code reads a row of zeros.

    References:
        Zhang et al., "Spanning Training Progress: Temporal Dual-Depth Scoring (TDDS) for Enhanced Dataset Pruning",
        CVPR 2024, arXiv:2311.13613.

    Example:
        >>> tracker = TDDS(num_samples=1, window=3)
        >>> for logit in (0.0, 1.0, 1.0):
        ...     tracker.update(torch.tensor([0]), logits=torch.tensor([[logit, 0.0]]))
        ...     tracker.end_epoch()
        >>> tracker.compute()
        tensor([0.2829])
    """

    high = "its loss still changes fast, and unevenly, in the last windows: it moves the training"
    needs = ("logits",)

    def __init__(
        self,
        num_samples: int | None = None,
        num_classes: int | None = None,
        window: int = 10,
        decay: float = 0.9,
        *,
        num_epochs: int | None = None,
        precision: Literal["auto", "float16", "float32"] = "auto",
    ) -> None:
        if num_classes is not None:
            check_int("num_classes", num_classes, low=2)
        check_int("window", window, low=3)
        check_ratio("decay", decay, closed_low=False, closed_high=True)
        if num_epochs is not None:
            check_int("num_epochs", num_epochs, low=window)
        check_choice("precision", precision, ("auto", "float16", "float32"))
        super().__init__(num_samples, num_epochs=num_epochs)
        self.num_classes = num_classes
        self.window = self.min_epochs = window
        self.decay = decay
        self.precision = precision

    def measure(self, batch: Batch) -> Tensor:
        """Return the probabilities ``(B, C)``."""
        expected = self.state["log_probs"].shape[1] if self.state else self.num_classes
        if expected not in (None, batch.logits.shape[1]):
            raise ValueError(f"Expected `logits` of {expected} classes, but got {batch.logits.shape[1]}.")
        return batch.probs

    def initial(self, num_samples: int, values: Tensor) -> dict[str, Tensor]:
        """Return state of all NaN: no previous visit, no difference, no complete window."""
        n, num_classes, device = num_samples, values.shape[1], values.device
        exact = self.precision == "float32" or (self.precision == "auto" and n * num_classes <= _EXACT_UP_TO)
        dtype = torch.float32 if exact else torch.float16
        return {
            "log_probs": torch.full((n, num_classes), torch.nan, dtype=dtype, device=device),
            "steps": torch.full((n, self.window - 2), torch.nan, dtype=torch.float32, device=device),
            "score": torch.full((n,), torch.nan, dtype=torch.float32, device=device),
        }

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Append the newest difference; once a window is complete, let the score decay towards its spread."""
        log_probs = (values + EPS).log()
        step = (values * (log_probs - old["log_probs"])).abs().sum(1, keepdim=True)
        window = torch.cat([old["steps"], step], 1)
        spread = torch.linalg.vector_norm(window - window.mean(1, keepdim=True), dim=1)
        score = (1 - self.decay) * old["score"].nan_to_num() + self.decay * spread
        return {"log_probs": log_probs, "steps": window[:, 1:], "score": score}

    def score(self) -> Tensor:
        """Return the running scores."""
        return self.state["score"].clone()
