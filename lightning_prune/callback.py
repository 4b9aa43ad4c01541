"""The base class of every pruning method: what an author overrides, and the arguments that all methods share."""

from __future__ import annotations

import inspect
import math
import os
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_prune._checks import check_int, check_ratio
from lightning_prune.plan import Selection

if TYPE_CHECKING:
    import torch

    from lightning_prune.epoch import EpochRecord
    from lightning_prune.mixin import StepRecord
    from lightning_prune.registry import ScoreRegistry


def num_pruning_epochs(max_epochs: int, anneal_ratio: float) -> int:
    """Return how many epochs of the run may prune: epoch e (from 0) does if ``e + 1 <= max_epochs * anneal_ratio``.

    Example:
        >>> [num_pruning_epochs(e, 0.875) for e in (200, 100, 90, 10)]
        [175, 87, 78, 8]
    """
    return math.floor(max_epochs * anneal_ratio + 1e-9)


def is_annealing(registry: ScoreRegistry, epoch: int, anneal_ratio: float) -> bool:
    """Return whether ``epoch`` belongs to the last part of the run, which trains without pruning.

    Runs limited by ``max_epochs`` are divided by epochs; runs limited by ``max_steps``, by optimizer steps done at the
    epoch's start. A run without a limit never anneals.
    """
    check_ratio("anneal_ratio", anneal_ratio, closed_high=True)
    if registry.max_epochs is not None and epoch >= num_pruning_epochs(registry.max_epochs, anneal_ratio):
        return True
    return registry.max_steps is not None and registry.global_step >= registry.max_steps * anneal_ratio


class PruningCallback(Callback):
    """Base class of pruning methods. An author overrides :meth:`select`; the rest is optional.

    The selection of an epoch must be a pure function of the registry's state, the epoch and the generator: it is
    recomputed on every rank and on resume. State changes belong in :meth:`on_epoch_recorded`, and lives in columns of
    the registry, which synchronises and checkpoints them.

    Args:
        seed: Seed of all draws. None: the global seed set by ``seed_everything``, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Step a step-interval LR schedule so that it ends on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> class Hardest(PruningCallback):
        ...     def select(self, registry, epoch, generator):
        ...         scores = registry.scores.nan_to_num(nan=float("inf"))
        ...         return Selection(scores.topk(registry.num_samples // 2).indices)
    """

    needs_mixin: bool = True
    """Whether the module must be a `WeightedLossMixin`; False only for methods that take losses from elsewhere."""
    record_names: tuple[str, ...] = ()
    """Per-sample values recorded beside the loss, by the names that :meth:`per_sample` returns."""
    ranks_by_scores: bool = True
    """Whether `select` ranks by ``registry.scores``, so that a wrapping method may put other scores there."""
    weighs_losses: bool = False
    """Whether selections carry weights, which only a `WeightedLossMixin` can apply."""
    picks_in_batch: ClassVar[bool] = False
    """Whether :meth:`pick` chooses among the samples of a batch before it is trained."""
    picks_by_losses: ClassVar[bool] = True
    """Whether :meth:`pick` reads losses only, which a module may give by a cheaper ``per_sample_loss(batch)``."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        if seed is not None:
            check_int("seed", seed, low=0)
        check_int("warmup_epochs", warmup_epochs, low=0)
        self.seed = seed
        self.warmup_epochs = warmup_epochs
        self.scale_lr_schedule = scale_lr_schedule
        self.log_metrics = log

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        """Return the samples of ``epoch``; must not change any state. A method that picks in batches needs none.

        Args:
            registry: Per-sample state as of the epoch's start; read ``registry.scores``, ``registry.counts``, columns.
            epoch: Epoch number, from 0; at least ``warmup_epochs``.
            generator: CPU generator seeded from (seed, epoch); the same on every rank.
        """
        if self.picks_in_batch:
            return Selection.all(registry.num_samples, registry.losses.device)
        raise NotImplementedError(f"{type(self).__name__} must override `select(registry, epoch, generator)`.")

    def setup_columns(self, registry: ScoreRegistry) -> None:
        """Declare per-sample state with ``registry.add_column``; called before the first epoch, and on resume."""

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return a tensor ``(B,)`` for each of ``record_names``; called after each step if there are any; no sync."""
        return {}

    def missing_losses(self, step: StepRecord) -> Tensor | None:
        """Return losses ``(B,)`` to record for a step of a module without the mixin; None: there are none."""
        return None

    def picks_now(self, registry: ScoreRegistry, epoch: int, batch_idx: int) -> bool:
        """Return whether :meth:`pick` is to be asked about this batch; it costs a forward pass."""
        return self.picks_in_batch

    def pick(self, step: StepRecord, generator: torch.Generator) -> Tensor:
        """Return the positions ``(k,)``, int64, of a batch that are trained; the same number on every rank.

        Args:
            step: Losses ``(B,)`` of the whole batch from a forward pass in eval mode, and what else
                ``weighted_loss`` was given.
            generator: CPU generator seeded from (seed, epoch, batch, rank).
        """
        raise NotImplementedError(f"{type(self).__name__} must override `pick(step, generator)`.")

    def on_epoch_recorded(self, registry: ScoreRegistry, record: EpochRecord) -> None:
        """Update state after an epoch; the registry's losses and counts are already those of its end."""

    def metrics(self, registry: ScoreRegistry) -> dict[str, float | Tensor]:
        """Return what to log under ``prune/`` beside the common values; called after :meth:`on_epoch_recorded`."""
        return {}

    @property
    def resolved_seed(self) -> int:
        """The seed in force: the argument, else the one that ``seed_everything`` set, else 0."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the score registry, which drives the epochs of this method."""
        from lightning_prune.registry import ScoreRegistry

        if stage == "fit":
            ScoreRegistry.attach(trainer, pl_module)

    def __repr__(self) -> str:
        shared = {"seed", "warmup_epochs", "scale_lr_schedule", "log"}
        names = [
            name
            for name in inspect.signature(type(self).__init__).parameters
            if name not in {"self", *shared} and hasattr(self, name)
        ]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
