"""What recording five scores adds to the training of a small CNN on digits: one fit, each block drawn at random.

Run with ``python -m benchmarks.trackers [--quick]``.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F

from benchmarks.measure import HEADER, Row, one_thread
from examples.digits.task import DigitsData, DigitsModel
from lightning_prune import ScoreRegistry
from lightning_prune.scoring import AUM, EL2N, TDDS, DynUnc, Forgetting, ScoreRecorder

BLOCK = 32
"""Steps in a block: as many as the recorder notes before it feeds the trackers."""
ROUNDS = 20
"""Blocks of each kind that make one ratio."""


class SwitchedModel(DigitsModel):
    """Takes plain steps or recorded ones."""

    recorded = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.recorded:
            return super().training_step(batch, batch_idx)
        images, targets = batch
        return F.cross_entropy(self(images), targets)


class Switch(ScoreRegistry):
    """Runs its hooks in recorded blocks only, and times each block from first step to first step."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = random.Random(0)
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self.since: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % BLOCK == 0:
            now = time.process_time()
            if self.since is not None:
                self.times[pl_module.recorded].append(now - self.since)
            pl_module.recorded = self.draw.random() < 0.5
            self.since = time.process_time()
        if pl_module.recorded:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.recorded:
            super().on_train_batch_end(trainer, pl_module, *args)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.since = None
        super().on_train_epoch_end(trainer, pl_module)


class SwitchedRecorder(ScoreRecorder):
    """Records in recorded blocks only."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.recorded:
            super().on_train_batch_end(trainer, pl_module, *args)


def measure(epochs: int = 300) -> list[Row]:
    """Return the row; each ratio is that of the medians of as many blocks of each kind."""
    L.seed_everything(0, verbose=False)
    switch = Switch()
    trackers = [TDDS(), EL2N(num_epochs=epochs), Forgetting(), AUM(), DynUnc()]
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[switch, SwitchedRecorder(trackers)],
    )
    trainer.fit(SwitchedModel(), DigitsData())
    plain, recorded = (switch.times[key][5:] for key in (False, True))
    ratios = [
        statistics.median(recorded[i : i + ROUNDS]) / statistics.median(plain[i : i + ROUNDS])
        for i in range(0, min(len(plain), len(recorded)) - ROUNDS + 1, ROUNDS)
    ]
    name = "step of a small CNN on digits: TDDS, EL2N, Forgetting, AUM, DynUnc recorded / plain"
    return [Row(name, BLOCK * len(recorded), ratios, 1.10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    epochs = 100 if parser.parse_args().quick else 300
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    one_thread()
    print(f"torch {torch.__version__}, one thread, CPU\n\n{HEADER}")
    for row in measure(epochs):
        print(row)


if __name__ == "__main__":
    main()
