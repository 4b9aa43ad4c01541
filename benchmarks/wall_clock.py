"""The saving that arrives: an epoch at keep 0.5 of a small CNN, everything on, against a full epoch."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Row
from lightning_prune import PruningCallback, ScoreRegistry, Selection, WeightedLossMixin


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
    """Full epochs and hard halves in turn, weighted, so that each pair is one round."""

    def select(self, registry: ScoreRegistry, epoch: int, generator: torch.Generator) -> Selection:
        n = registry.num_samples
        k = n if epoch % 2 == 0 else n // 2
        indices = registry.scores.nan_to_num(nan=9e9).topk(k).indices
        return Selection(indices, torch.full((k,), n / k))


class Clock(L.Callback):
    """CPU seconds from one epoch's start to the next one's."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.starts.append(time.process_time())

    on_train_end = on_train_epoch_start


def measure(rounds: int = 8) -> list[Row]:
    """Return the row: speed-up over ideal, of pairs of epochs."""
    n = 4096
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    data = TensorDataset(images, torch.randint(10, (n,), generator=generator))
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=2 * (rounds + 1),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, Alternate()],
    )
    trainer.fit(CNN(), DataLoader(data, 128, shuffle=True))
    seconds = [b - a for a, b in zip(clock.starts, clock.starts[1:], strict=False)]
    ratios = [full / half / 2 for full, half in zip(seconds[2::2], seconds[3::2], strict=True)]
    return [Row("epoch at keep 0.5 of a small CNN: speed-up / 2.0", n, ratios, ">= 0.93")]
