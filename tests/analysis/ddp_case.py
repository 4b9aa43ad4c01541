"""Runs fits in two gloo processes; each rank saves what its callbacks saw."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_prune import LabelIssues, OrderDP, PruningMonitor, RandomPruning
from tests.helpers import Model, make_loader, make_trainer
from tests.scoring.ddp_case import NUM_SAMPLES, TableModel


def run_rank(rank: int, folder: Path) -> None:
    monitor = PruningMonitor(targets=1, gradient_every_n_epochs=1, gradient_samples=21)
    trainer = make_trainer(OrderDP(seed=2), monitor, devices=2, strategy="ddp")
    model = Model()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.fit(model, make_loader(batch_size=2))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    seen = {
        "history": monitor.history,
        "weights": weights,
        "warnings": [str(one.message) for one in warned if "sync_dist" in str(one.message)],
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    torch.save(seen, folder / f"{rank}.pt")
    whole, checkpoint = find_labels(2, folder)
    resumed, _ = find_labels(2, folder, checkpoint)
    torch.save({"whole": whole, "resumed": resumed}, folder / f"labels.{rank}.pt")


def find_labels(devices: int, folder: Path, ckpt_path: Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """Return the table of a run whose outputs depend on sample and epoch alone, and a checkpoint of mid-epoch."""
    issues, saving = LabelIssues(), ModelCheckpoint(folder, "labels-{step}", every_n_train_steps=8, save_top_k=-1)
    strategy = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    trainer = make_trainer(RandomPruning(0.3, seed=1), issues, saving, enable_checkpointing=True, **strategy)
    trainer.fit(TableModel(), make_loader(NUM_SAMPLES, 4 // devices), ckpt_path=ckpt_path)
    return issues.issues(), folder / "labels-step=8.ckpt"
