"""Runs a monitored fit in two gloo processes; each rank saves what its monitor saw. ``ddp_case FOLDER``."""

from __future__ import annotations

import sys
import warnings

import torch

from lightning_prune import OrderDP, PruningMonitor
from tests.helpers import Model, make_loader, make_trainer


def main() -> None:
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
    torch.save(seen, f"{sys.argv[1]}/{trainer.global_rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
