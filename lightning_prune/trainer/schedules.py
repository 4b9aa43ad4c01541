"""Learning-rate schedules over shorter epochs: a step-interval schedule comes to its end, not to its middle."""

from __future__ import annotations

import math
from typing import Any, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.core.method import Method
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

    def scales(self, config: Any) -> bool:
        """Return whether the steps of a scheduler are spread over the shorter epochs."""
        method = self.session.method
        if method is None or not method.scale_lr_schedule or self.trainer.max_steps != -1:
            return False
        return config.interval == "step" and not config.reduce_on_plateau

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
        if self.session.running is None or not self.session.step.active:  # a search steps a schedule of its own
            return 1
        config = next((c for c in trainer.lr_scheduler_configs if c.scheduler is scheduler), None)
        if config is None or not self.scales(config):
            return 1
        batches = (trainer.fit_loop.batch_idx + 1, int(trainer.num_training_batches), self.session.full_batches)
        return scheduler_calls(*(math.ceil(b / trainer.accumulate_grad_batches) for b in batches))


def warn_if_hidden(pl_module: LightningModule, method: Method | None) -> None:
    """Warn of a module whose own ``lr_scheduler_step`` hides the mixin's."""
    if method is None or not method.scale_lr_schedule or not isinstance(pl_module, WeightedLossMixin):
        return
    owner = next(c for c in type(pl_module).__mro__ if "lr_scheduler_step" in vars(c))
    if owner is not WeightedLossMixin:
        rank_zero_warn(
            f"`{owner.__name__}.lr_scheduler_step` hides the one of `WeightedLossMixin`, so step-interval "
            "schedules follow the shorter epochs only if it steps the scheduler "
            "`self.pruned_scheduler_calls(scheduler)` times. If that is not wanted, pass "
            "`scale_lr_schedule=False` to the pruning callback."
        )
