"""One run on digits, monitored."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch

from lightning_prune import PruningCallback, PruningMonitor, ScoreRegistry


def quiet() -> None:
    """Silence Lightning's notes, and use one thread, as such small layers are slower on several."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)


def train(
    method: PruningCallback | None,
    model: L.LightningModule,
    data: L.LightningDataModule,
    epochs: int,
    callbacks: Sequence[L.Callback] = (),
    validate_every: int | None = None,
    **monitored: Any,
) -> tuple[list[dict[str, float]], ScoreRegistry, float]:
    """Train once; return what the monitor saw, epoch by epoch, the registry and the accuracy at the end.

    Args:
        method: The pruning method. None: all the data.
        model: Logs ``val_accuracy``.
        data: What it trains on.
        epochs: Number of epochs.
        callbacks: Further callbacks.
        validate_every: Epochs from one validation to the next. None: one, at the end.
        monitored: Arguments of `PruningMonitor`.
    """
    monitor, registry = PruningMonitor(**monitored), ScoreRegistry()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=validate_every or epochs,
        callbacks=[registry, *([] if method is None else [method]), monitor, *callbacks],
    )
    trainer.fit(model, data)
    return monitor.history, registry, float(trainer.callback_metrics["val_accuracy"])
