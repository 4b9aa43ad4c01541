"""What recording and weighting add to a training step of a tiny MLP: one fit, the variant drawn at random per step."""

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

from benchmarks.measure import Row
from lightning_prune import InfoBatch, ScoreRegistry, WeightedLossMixin

BATCH_SIZE, BLOCK = 128, 200


class MLP(WeightedLossMixin, L.LightningModule):
    """Takes a plain step or a pruned one, as drawn before each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.pruned = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        if self.pruned:
            return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Alternating(ScoreRegistry):
    """Runs its hooks for the pruned steps only, and times each step from hook to hook."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = random.Random(0)
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self.since: float | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self.since is not None:
            self.times[pl_module.pruned].append(now - self.since)
        pl_module.pruned = self.draw.random() < 0.5
        self.since = time.perf_counter()
        if pl_module.pruned:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.pruned:
            super().on_train_batch_end(trainer, pl_module, *args)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.since = None
        super().on_train_epoch_end(trainer, pl_module)


def measure(steps: int = 5000) -> list[Row]:
    """Return the row; each ratio is that of the medians of a block of steps."""
    generator = torch.Generator().manual_seed(0)
    n = BATCH_SIZE * 500
    data = TensorDataset(torch.randn(n, 64, generator=generator), torch.randint(10, (n,), generator=generator))
    registry = Alternating()
    trainer = L.Trainer(
        max_epochs=-1,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[registry, InfoBatch(anneal_ratio=1.0)],
    )
    trainer.fit(MLP(), DataLoader(data, BATCH_SIZE, shuffle=True))
    plain, pruned = (registry.times[key][50:] for key in (False, True))
    blocks = min(len(plain), len(pruned)) // BLOCK
    ratios = [
        statistics.median(pruned[i * BLOCK : (i + 1) * BLOCK]) / statistics.median(plain[i * BLOCK : (i + 1) * BLOCK])
        for i in range(blocks)
    ]
    return [Row("step of a tiny MLP: recording and weights / plain Lightning", len(pruned), ratios, "<= 1.12")]
