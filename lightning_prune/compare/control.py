"""The fair control: all the data for fewer epochs, with learning-rate schedules that come to their end."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_prune.compare.methods import FULL
from lightning_prune.trainer.mixin import WeightedLossMixin


def control_epochs(max_epochs: int, ratio: float) -> int | None:
    """Return how many full epochs take as many steps as a run that saves ``ratio``. None: not fewer than all of it.

    Example:
        >>> control_epochs(20, 0.3), control_epochs(3, 0.9), control_epochs(1, 0.5)
        (14, 1, None)
    """
    epochs = max(1, round(max_epochs * (1 - ratio)))
    return epochs if epochs < max_epochs else None


def control_label(epochs: int, max_epochs: int) -> str:
    """Return the name of full data for fewer epochs.

    Example:
        >>> control_label(10, 20)
        'full data, 10 of 20 epochs'
    """
    return f"{FULL}, {epochs} of {max_epochs} epochs"


@final
class FewerEpochs(Callback):
    """Ends a run of ``max_epochs`` after fewer, with its schedules where they would be after all.

    The schedules are built for the whole run, whatever they are built from, and then go through it in larger steps.
    Where the module steps them itself, they are built for the shorter run.

    Args:
        epochs: Number of epochs.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._whole = 0
        self._steps = 0
        self._taken: dict[int, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note how long the whole run is."""
        self._whole = int(trainer.max_epochs or 0)
        if self._steps_itself(pl_module):
            trainer.fit_loop.max_epochs = self.epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shorten the run, now that its schedules are there."""
        if self._steps_itself(pl_module):
            self._whole = self.epochs
        trainer.fit_loop.max_epochs = self.epochs
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the further steps of schedules by optimizer steps."""
        if trainer.global_step > self._steps:
            self._catch_up(trainer, "step", trainer.global_step, is_last=False)
            self._steps = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the further steps of schedules by epochs."""
        done = trainer.current_epoch + 1
        self._catch_up(trainer, "epoch", done, is_last=done == self.epochs)

    def _catch_up(self, trainer: Trainer, interval: str, done: int, *, is_last: bool) -> None:
        for number, config in enumerate(trainer.lr_scheduler_configs):
            if config.interval != interval or config.reduce_on_plateau or (done % config.frequency and not is_last):
                continue
            further = done * self._whole // (self.epochs * config.frequency) - done // config.frequency
            for _ in range(further - self._taken.get(number, 0)):
                config.scheduler.step()  # type: ignore[call-arg]  # ReduceLROnPlateau is left out
            self._taken[number] = further

    @staticmethod
    def _steps_itself(module: LightningModule) -> bool:
        own = type(module).lr_scheduler_step
        return not module.automatic_optimization or own not in (
            LightningModule.lr_scheduler_step,
            WeightedLossMixin.lr_scheduler_step,
        )
