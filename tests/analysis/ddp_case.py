"""Runs a monitored fit in two gloo processes; each rank saves what its monitor saw. ``ddp_case FOLDER``."""

from __future__ import annotations

import sys

import torch

from lightning_prune import OrderDP, PruningMonitor
from tests.helpers import Model, make_loader, make_trainer


def main() -> None:
    monitor = PruningMonitor(targets=1, gradient_every_n_epochs=1, gradient_samples=21)
    trainer = make_trainer(OrderDP(seed=2), monitor, devices=2, strategy="ddp")
    model = Model()
    trainer.fit(model, make_loader(batch_size=2))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"history": monitor.history, "weights": weights}, f"{sys.argv[1]}/{trainer.global_rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
