"""Learning-rate schedules over shorter epochs: a step-interval schedule comes to its end, not to its middle."""

from __future__ import annotations

import math
from typing import Any, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core.plan import scheduler_calls
from lightning_prune.core.session import Session
from lightning_prune.trainer.mixin import WeightedLossMixin


@final
class Schedules:
    """Says how often the schedules of a fit are due at each optimizer step.

    Args:
        trainer: The trainer, in a fit.
        session: The run.
    """

    def __init__(self, trainer: Trainer, session: Session) -> None:
        self.trainer = trainer
        self.session = session
        self._begun_at = self._full_before = 0
        self._watches = True  # until the module has asked once, or is warned
        self._before: list[Any] | None = None

    @property
    def _any(self) -> bool:
        """Whether schedules are spread over the shorter epochs at all."""
        method = self.session.method
        return method is not None and method.scale_lr_schedule and self.trainer.max_steps == -1

    @property
    def _is_manual(self) -> bool:
        return not self.trainer.lightning_module.automatic_optimization

    def scales(self, config: Any) -> bool:
        """Return whether the steps of a scheduler are spread over the shorter epochs."""
        return self._any and config.interval == "step" and not config.reduce_on_plateau

    def check(self, pl_module: LightningModule) -> None:
        """Refuse schedules that cannot be scaled; warn of those that a module without the mixin will not scale.

        Raises:
            MisconfigurationException: If a scheduler that is to be scaled has a ``frequency`` other than 1.
        """
        for config in self.trainer.lr_scheduler_configs:
            if not self.scales(config):
                continue
            if not isinstance(pl_module, WeightedLossMixin):
                rank_zero_warn(
                    f"`{type(pl_module).__name__}` has no `WeightedLossMixin`, so its step-interval schedule does not "
                    "follow the shorter epochs, and will not come to its end. Inherit the mixin, or pass "
                    "`scale_lr_schedule=False` to the pruning callback if that is wanted."
                )
                return
            if config.frequency != 1:
                raise MisconfigurationException(
                    f"Expected `frequency=1` for a scheduler with `interval='step'`, but got {config.frequency}: its "
                    "steps cannot be spread exactly over shorter epochs. Use `frequency=1` with a schedule over all "
                    "optimizer steps, or pass `scale_lr_schedule=False` to the pruning callback."
                )

    def calls(self, scheduler: Any) -> int:
        """Return how often a scheduler is due at this optimizer step (1 where nothing is scaled)."""
        trainer = self.trainer
        if not self.session.in_step or self.session.is_endless:  # a search steps a schedule of its own
            return 1
        self._watches = False
        config = next((c for c in trainer.lr_scheduler_configs if c.scheduler is scheduler), None)
        if config is None or not (self.scales(config) or (self._is_manual and self._any)):
            return 1
        batches = (trainer.fit_loop.batch_idx + 1, int(trainer.num_training_batches), self.session.full_batches)
        return scheduler_calls(*(math.ceil(b / trainer.accumulate_grad_batches) for b in batches))

    def full_step(self) -> int:
        """Return the optimizer step that the run would be at if nothing was left out: over the run, exactly its end."""
        self._watches = False
        return self._full_step() if self._any else int(self.trainer.global_step)

    def _full_step(self) -> int:
        trainer, session = self.trainer, self.session
        done = int(trainer.global_step) - self._begun_at
        if session.running is not None and not session.is_endless:
            batches = (session.num_batches, session.full_batches)
            kept, full = (math.ceil(b / trainer.accumulate_grad_batches) for b in batches)
            done = done * full // kept
        return self._full_before + done

    def start(self, state: list[int] | None) -> None:
        """Count from the run's present step on, or go on from what :meth:`state` returned."""
        step = int(self.trainer.global_step)
        self._begun_at, self._full_before = (step, step) if state is None else state

    def state(self) -> list[int]:
        """Return the steps done at the epoch's start, and those of the full run by then."""
        return [self._begun_at, self._full_before]

    def end_epoch(self) -> None:
        """Count the epoch's steps as those of a full one; while it is still running."""
        self._full_before, self._begun_at = self._full_step(), int(self.trainer.global_step)

    # A module that steps its schedules itself must ask how often

    def before_step(self) -> None:
        """Note where a module's own schedules are, in a shorter epoch."""
        if self._watches and self._any:
            short = self.session.num_batches < self.session.full_batches
            self._before = None if not short else self._positions() if self._is_manual else []

    def after_step(self, batch_idx: int) -> None:
        """Warn, once, of a module that has stepped a schedule without asking how often."""
        before, self._before = self._before, None
        module = self.trainer.lightning_module
        if before is None or not self._watches:
            return
        if self._is_manual:
            what, due = f"`{type(module).__name__}` steps a learning-rate schedule itself", before != self._positions()
        else:
            owner = next(c for c in type(module).__mro__ if "lr_scheduler_step" in vars(c))
            what = f"`{owner.__name__}.lr_scheduler_step` hides the one of `WeightedLossMixin`"
            due = isinstance(module, WeightedLossMixin) and owner is not WeightedLossMixin
            due = due and any(map(self.scales, self.trainer.lr_scheduler_configs))
            due = due and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if due:
            self._watches = False
            rank_zero_warn(
                f"{what}, and does not ask how often: epochs are shorter now, so the schedule will not come to its "
                "end. Step it `self.pruned_scheduler_calls(scheduler)` times, or tell it `self.pruned_global_step` in "
                "place of `self.global_step` (both are of `WeightedLossMixin`). If that is not wanted, pass "
                "`scale_lr_schedule=False` to the pruning callback."
            )

    def _positions(self) -> list[Any]:
        """Return the learning rates, and where schedulers stand that say so."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        rates = [rate for group in groups if not isinstance(rate := group["lr"], Tensor)]  # to read one would wait
        schedulers = [c.scheduler for c in self.trainer.lr_scheduler_configs if not c.reduce_on_plateau]
        counts = [getattr(scheduler, "last_epoch", None) for scheduler in schedulers]
        return [*rates, *counts]
