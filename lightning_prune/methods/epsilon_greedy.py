"""Epsilon-greedy (Raju et al., 2021): the highest average losses and a random share, chosen anew every few epochs."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import count_true, ids_of, kth_lowest, to_device
from lightning_prune.core.checks import check_int, check_ratio, check_scores
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.ratio import FIRST_FULL, Ratio
from lightning_prune.core.rng import permutation, resolve_generator
from lightning_prune.core.stats import infinite_where_nonfinite
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._periodic import PeriodicPruning, first_where_unknown, moving_average

_MEAN = "epsilon_greedy_mean"


def epsilon_greedy(
    scores: Tensor, num_keep: int, epsilon: float, *, generator: torch.Generator | None = None
) -> Selection:
    """Keep the highest scores, and fill a share ``epsilon`` of the places uniformly from all others.

    Of k places ``floor(epsilon k)`` are filled at random and the rest greedily: a greedy sample is kept for sure, each
    other one with probability ``floor(epsilon k) / (n - greedy)``. Non-finite scores (NaN: never seen) rank above all
    others; ties are broken uniformly at random. Nothing is re-weighted: the gradient is biased to high scores.

    Args:
        scores: Average losses or other scores ``(n,)``; the high ones are kept.
        num_keep: Number kept k, in [1, n].
        epsilon: Share of the places that are filled at random, in [0, 1]. 0: the top k; 1: a random subset.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Exactly ``num_keep`` ascending ids on the device of ``scores``, unweighted.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor or ``num_keep`` not an int.
        ValueError: If ``scores`` is not ``(n,)`` with n >= 1, or an argument is out of range.

    Example:
        >>> epsilon_greedy(torch.tensor([0.3, 9.0, 0.1, 5.0]), 2, 0.0).indices.tolist()
        [1, 3]
    """
    check_scores("scores", scores)
    check_int("num_keep", num_keep, low=1, high=len(scores))
    check_ratio("epsilon", epsilon, closed_high=True)
    generator = resolve_generator(generator)
    num_random = int(num_keep * epsilon + 1e-6)  # the small term mends products such as 100 * 0.29
    keep = _highest(scores, num_keep - num_random, generator)
    if num_random:
        rest = ids_of(~keep)
        drawn = to_device(permutation(len(rest), generator)[:num_random], rest.device)
        keep.index_fill_(0, rest.index_select(0, drawn), True)
    return Selection.from_mask(keep)


def _highest(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return which ``(n,)`` are the ``k`` highest scores, non-finite ones before all others, ties at random."""
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    values = infinite_where_nonfinite(scores)
    threshold = kth_lowest(values, len(values) - k + 1)
    above, ties = values > threshold, ids_of(values == threshold)
    missing = k - count_true(above)
    if missing < len(ties):
        ties = ties.index_select(0, to_device(permutation(len(ties), generator)[:missing], ties.device))
    return above.index_fill_(0, ties, True)


@final
class EpsilonGreedy(PeriodicPruning):
    """Train on the samples of the highest average loss and some random ones; ``prune_ratio`` is of all samples.

    A share ``epsilon`` of the kept places goes to random samples, so that every sample's average is brought up to date
    now and then. The choice is made in the first epoch that prunes (the first of all trains on everything) and in each
    whose number is a multiple of ``every_n_epochs``, and stays in force until the next one. Every epoch has the same
    number of samples. Nothing is re-weighted and nothing anneals.

    Args:
        prune_ratio: Share of all samples left out of each epoch, in [0, 1), or a schedule.
        epsilon: Share of the kept places that are filled at random, in [0, 1].
        every_n_epochs: Epochs from one choice to the next, at least 1.
        smoothing: Weight of a new loss in a sample's average, in (0, 1]; the first loss starts it.
        seed: Seed of the draws. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything (the first always does).
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The averages are of the losses seen in training, so those of the samples left out stay as they are; the paper
        scores all samples anew by a forward pass before each choice. Samples without a loss, or whose last one is not
        finite, come first.

    References:
        Raju et al., "Accelerating Deep Learning with Dynamic Data Pruning", 2021, arXiv:2111.12621.

    Example:
        >>> EpsilonGreedy(prune_ratio=0.5)
        EpsilonGreedy(prune_ratio=0.5, epsilon=0.1, every_n_epochs=10, smoothing=0.3)
    """

    set_by_ratio = FIRST_FULL

    def __init__(
        self,
        prune_ratio: Ratio = 0.3,
        epsilon: float = 0.1,
        every_n_epochs: int = 10,
        smoothing: float = 0.3,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(
            prune_ratio,
            every_n_epochs,
            smoothing,
            seed=seed,
            warmup_epochs=warmup_epochs,
            scale_lr_schedule=scale_lr_schedule,
            log=log,
        )
        check_ratio("epsilon", epsilon, closed_high=True)
        self.epsilon = epsilon

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the average losses, NaN: none yet."""
        super().setup_columns(registry)
        registry.add_column(_MEAN, fill=torch.nan)

    def choose(self, registry: SampleTable, k: int, generator: torch.Generator) -> Selection:
        """Choose by the average losses."""
        scores = first_where_unknown(registry.column(_MEAN), registry)
        return epsilon_greedy(scores, k, self.epsilon, generator=generator)

    def update(self, registry: SampleTable, record: EpochRecord) -> None:
        """Move the averages of the trained samples."""
        mean = registry.column(_MEAN)
        moved = moving_average(mean.index_select(0, record.indices), record.losses, self.smoothing)
        mean.scatter_(0, record.indices, moved)
