"""What recording and weighting add to a training step of a tiny MLP: one fit, each step's variant drawn at random.

"plain" runs without our callbacks. "common" is what the published pruning code does: the dataset hands out an index
with every sample, the step gathers the weights of the batch's indices, clones its losses and scatters them into the
scores; here in one callback.
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
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Row, quiet_trainer
from lightning_prune import PruningCallback, ScoreRegistry, Selection, WeightedLossMixin

BATCH_SIZE, NUM_BATCHES, BLOCK = 128, 500, 200
VARIANTS = ("plain", "ours", "common")


class Samples(Dataset[Any]):
    """Random inputs and classes; the common pattern asks for the index, too."""

    def __init__(self, num_samples: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(num_samples, 64, generator=generator)
        self.y = torch.randint(10, (num_samples,), generator=generator)
        self.indexed = False

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        sample = self.x[index], self.y[index]
        return (index, sample) if self.indexed else sample


class MLP(WeightedLossMixin, L.LightningModule):
    """Takes the kind of step that was drawn for it."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.variant = "ours"
        self.losses = self.weights = torch.empty(0)
        self.conductor = conductor

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch if self.variant != "common" else batch[1]
        if self.variant == "plain":
            return F.cross_entropy(self.net(x), y)
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        if self.variant == "ours":
            return self.weighted_loss(losses)
        self.losses = losses
        return (losses * self.weights).mean()

    def on_train_batch_end(self, *args: Any) -> None:
        self.conductor.next_step(self)  # Lightning calls this after the callbacks

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Weighing(PruningCallback):
    """Keeps every epoch, and so its steps, alike; its weights are those of a pruned one."""

    weighs_losses = True

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        weights = 1 + torch.rand(registry.num_samples, generator=generator)
        return Selection(torch.arange(registry.num_samples), weights)


class Common(L.Callback):
    """The common pattern: gathers the batch's weights before the step, scatters its losses after it."""

    def __init__(self, num_samples: int) -> None:
        self.scores = torch.zeros(num_samples)
        self.weights = torch.ones(num_samples)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.weights = self.weights[batch[0]]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.scores[batch[0]] = pl_module.losses.detach().clone()


class Conductor(L.Callback):
    """Draws each step's variant, leaves our callbacks out of the others, times from one step's end to the next's."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.draw = random.Random(0)
        self.times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        self.since: float | None = None
        self.callbacks: dict[str, list[L.Callback]] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.callbacks = {"plain": [self], "common": [self, Common(len(self.samples))], "ours": trainer.callbacks}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.since = None

    def next_step(self, module: MLP) -> None:
        now = time.process_time()
        if self.since is not None:
            self.times[module.variant].append(now - self.since)
        module.variant = "ours" if module.trainer.is_last_batch else self.draw.choice(VARIANTS)
        module.trainer.callbacks = self.callbacks[module.variant]  # type: ignore[attr-defined]
        self.samples.indexed = module.variant == "common"
        self.since = time.process_time()


def measure(*, steps: int = 9000) -> list[Row]:
    """Return the rows; each figure is of the medians of a block of steps of each variant."""
    samples = Samples(BATCH_SIZE * NUM_BATCHES)
    conductor = Conductor(samples)
    trainer = quiet_trainer(max_epochs=-1, max_steps=steps, callbacks=[conductor, Weighing()])
    trainer.fit(MLP(conductor), DataLoader(samples, BATCH_SIZE, shuffle=True))
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
