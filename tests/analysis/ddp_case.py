"""Runs a monitored fit in two gloo processes; each rank saves what its monitor saw."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from lightning_prune import OrderDP, PruningMonitor
from tests.helpers import Model, make_loader, make_trainer


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
