"""The base class of every pruning method: what an author overrides, and how it joins a Trainer."""

from __future__ import annotations

from abc import ABC

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_prune.core.method import Method
from lightning_prune.trainer.base import TrainerCallback
from lightning_prune.trainer.registry import ScoreRegistry


class PruningCallback(Method, TrainerCallback, ABC):
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
        >>> from lightning_prune import Selection
        >>> class Hardest(PruningCallback):
        ...     def select(self, registry, epoch, generator):
        ...         scores = registry.scores.nan_to_num(nan=float("inf"))
        ...         return Selection(scores.topk(registry.num_samples // 2).indices)
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the score registry, which drives the epochs of this method."""
        if stage == "fit":
            ScoreRegistry.attach(trainer, pl_module)

    def trainer_only(self) -> str | None:
        """Return which of Lightning's hooks this method overrides: only a Trainer calls them."""
        hooks = [name for name in vars(Callback) if not name.startswith("_")]
        own = [name for name in hooks if getattr(type(self), name) is not getattr(PruningCallback, name)]
        return f"it overrides {', '.join(f'`{name}`' for name in own)}" if own else None
