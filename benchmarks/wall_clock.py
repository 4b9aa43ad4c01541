"""The saving that arrives: short epochs of a small CNN, everything on, against full ones."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Row, quiet_trainer
from lightning_prune import PruningCallback, ScoreRegistry, Selection, WeightedLossMixin

KEEPS = (0.7, 0.5, 0.3)


class CNN(WeightedLossMixin, L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 49, 10),
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weighted_loss(F.cross_entropy(self.net(batch[0]), batch[1], reduction="none"))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Alternate(PruningCallback):
    """A full epoch, then the hardest 70 %, full, 50 %, full, 30 %, weighted; so that each pair is one round."""

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        n = registry.num_samples
        k = n if epoch % 2 == 0 else round(n * KEEPS[epoch // 2 % len(KEEPS)])
        indices = registry.scores.nan_to_num(nan=9e9).topk(k).indices
        return Selection(indices, torch.full((k,), n / k))


class Clock(L.Callback):
    """CPU seconds from one epoch's start to the next one's."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.starts.append(time.process_time())

    on_train_end = on_train_epoch_start


def measure(*, n: int = 6400, rounds: int = 8) -> list[Row]:
    """Return a row for each share kept: speed-up over ideal, of pairs of epochs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    data = TensorDataset(images, torch.randint(10, (n,), generator=generator))
    clock = Clock()
    pairs = len(KEEPS) * (rounds + 1)  # the first round warms up
    quiet_trainer(max_epochs=2 * pairs, callbacks=[clock, Alternate()]).fit(CNN(), DataLoader(data, 128, shuffle=True))
    seconds = [b - a for a, b in zip(clock.starts, clock.starts[1:], strict=False)]
    rows = []
    for i, keep in enumerate(KEEPS):
        short = range(2 * (i + len(KEEPS)) + 1, len(seconds), 2 * len(KEEPS))
        values = [seconds[e - 1] / seconds[e] * keep for e in short]
        rows.append(Row(f"epoch of a small CNN at keep {keep}: speed-up / {1 / keep:.2f}", n, values, 0.93, 0.97, True))
    return rows
