"""What methods share that wrap another one, and those that give it other scores to rank by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.trainer.callback import PruningCallback


class MethodWrapper(PruningCallback, ABC):
    """Base class of methods that wrap a ``base``, and hand its hooks on.

    Raises:
        TypeError: If ``base`` is not a `PruningCallback`.
        ValueError: If it cannot be wrapped.
    """

    ranks_by_scores = False

    def __init__(
        self,
        base: PruningCallback,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        name = type(self).__name__
        if not isinstance(base, PruningCallback):
            raise TypeError(
                f"Expected `base` to be a pruning method, as in `{name}(base=InfoBatch())`, but got {base!r}."
            )
        if base.not_as_base is not None:
            raise ValueError(f"Expected a `base` that {name} can wrap, but got {base}: {base.not_as_base}")
        check_int("warmup_epochs", warmup_epochs, low=0)
        super().__init__(
            seed=base.seed if seed is None else seed,
            warmup_epochs=max(warmup_epochs, base.warmup_epochs),
            scale_lr_schedule=scale_lr_schedule and base.scale_lr_schedule,
            log=log and base.log_metrics,
        )
        self.base = base
        self.record_names = base.record_names
        self.weighs_losses = base.weighs_losses
        self.takes_new_samples = base.takes_new_samples

    @abstractmethod
    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Return what the base selects."""

    @abstractmethod
    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Hand the epoch on to the base."""

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the base's state."""
        self.base.setup_columns(registry)

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return what the base records."""
        return self.base.per_sample(step)

    def prunable(self, max_epochs: int) -> float:
        """Return the share of the epochs in which the base may leave something out, after the warm-up."""
        return min(self.base.prunable(max_epochs), max(0, max_epochs - self.warmup_epochs) / max_epochs)

    def trainer_only(self) -> str | None:
        """Return why the base needs a Trainer."""
        return self.base.trainer_only()

    def metrics(self, registry: SampleTable) -> dict[str, float | Tensor]:
        """Return what the base logs."""
        return self.base.metrics(registry)


class ScoreWrapper(MethodWrapper, ABC):
    """Base class of methods that wrap a ``base`` which ranks by ``registry.scores``, and give it other ones.

    Raises:
        TypeError: If ``base`` is not a `PruningCallback`.
        ValueError: If it does not rank by scores.
    """

    needs_arguments = ("it ranks for another method", "base: {class_path: InfoBatch}")
    wrapped_pilots: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.9)
    """Pilots beside those of the base, which saves less when wrapped: the undecided stay, or other scores rank."""

    def __init__(
        self,
        base: PruningCallback,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(base, seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        if not base.ranks_by_scores:
            raise ValueError(
                f"Expected a `base` that ranks by `registry.scores`, such as InfoBatch, SeTa, RePB or OrderDP, but "
                f"got {base}. If it is your own and does rank by them, set `ranks_by_scores = True` on its class."
            )
