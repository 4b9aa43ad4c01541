"""What recording and weighting add to a training step of a tiny MLP, in one fit: each step's variant is drawn at random.

"plain" runs without our callbacks; "common" is what pruning code usually does per step: a tensor of the batch's
indices, a gather of its weights, a clone of its losses, a scatter into the scores.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Row, quiet_trainer
from lightning_prune import InfoBatch, ScoreRegistry, WeightedLossMixin

BATCH_SIZE, NUM_BATCHES, BLOCK = 128, 500, 200
VARIANTS = ("plain", "ours", "common")


class MLP(WeightedLossMixin, L.LightningModule):
    """Takes the kind of step that was drawn for it."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.variant = "ours"
        self.scores = torch.zeros(num_samples)
        self.weights = torch.ones(num_samples)
        self.batches: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        if self.variant == "plain":
            return F.cross_entropy(self.net(x), y)
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        if self.variant == "ours":
            return self.weighted_loss(losses)
        indices = torch.tensor(self.batches[batch_idx])
        weights = self.weights[indices]
        self.scores[indices] = losses.detach().clone()
        return (losses * weights).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Common(L.Callback):
    """Where such code would select at the end of an epoch; it has no hooks for steps."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Select."""


class Conductor(L.Callback):
    """Draws each step's variant, leaves our callbacks out of the others, and times from one step's start to the next's."""

    def __init__(self) -> None:
        self.draw = random.Random(0)
        self.times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        self.since: float | None = None
        self.callbacks: list[L.Callback] = []
        self.common = Common()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.callbacks = [self, *(callback for callback in trainer.callbacks if callback is not self)]
        trainer.callbacks = self.callbacks

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        registry = next(callback for callback in self.callbacks if isinstance(callback, ScoreRegistry))
        pl_module.batches = list(registry._planned_loader.batch_sampler)
        pl_module.variant, self.since = "ours", None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        if self.since is not None:
            self.times[self.timed].append(now - self.since)
        self.since, self.timed = time.process_time(), pl_module.variant

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.variant = self.draw.choice(VARIANTS)
        others = {"plain": [self], "ours": self.callbacks, "common": [self, self.common]}
        trainer.callbacks = self.callbacks if trainer.is_last_batch else others[pl_module.variant]


def measure(*, steps: int = 9000) -> list[Row]:
    """Return the rows; each figure is of the medians of a block of steps of each variant."""
    generator = torch.Generator().manual_seed(0)
    n = BATCH_SIZE * NUM_BATCHES
    data = TensorDataset(torch.randn(n, 64, generator=generator), torch.randint(10, (n,), generator=generator))
    conductor = Conductor()
    # a run without end never anneals, and a ratio of 0 keeps every epoch, and so its steps, alike
    trainer = quiet_trainer(max_epochs=-1, max_steps=steps, callbacks=[conductor, InfoBatch(prune_ratio=0.0)])
    trainer.fit(MLP(n), DataLoader(data, BATCH_SIZE, shuffle=True))
    skip = min(len(values) for values in conductor.times.values()) // 20
    times = {variant: values[skip:] for variant, values in conductor.times.items()}
    num = min(len(values) for values in times.values())
    blocks = max(1, num // BLOCK)

    def medians(variant: str) -> list[float]:
        values = times[variant]
        size = len(values) // blocks
        return [statistics.median(values[i * size : (i + 1) * size]) for i in range(blocks)]

    plain, ours, common = (medians(variant) for variant in VARIANTS)
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    added = [(b - a) / (c - a) for a, b, c in zip(plain, ours, common, strict=True)]
    return [
        Row("step of a tiny MLP: recording and weights / plain Lightning", num, ratios, 1.12, 1.08),
        Row("time added to the step / that of the common pattern", num, added, 0.8, 0.6),
    ]
