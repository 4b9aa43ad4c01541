"""Faults of one rank, for `test_faults.py`; as a command, an error on rank 1 that rank 0 waits for."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_prune import ScoreRegistry, Selection
from tests.helpers import Keep, Model, make_loader, make_trainer


class Raises(Model):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and self.current_epoch == 1 and batch_idx == 1:
            raise RuntimeError("the first error, on rank 1")
        return super().training_step(batch, batch_idx)


class Diverges(Keep):
    """Selects other samples on rank 1, from epoch 2 on."""

    def select(self, registry, epoch, generator):
        rank = torch.distributed.get_rank()
        return Selection(torch.arange(20) + (rank if epoch >= 2 else 0))


class Configured(Model):
    def configure_model(self):
        """Strategies that distribute a model want this."""


def run_shared() -> None:
    """Two processes on the same batches: a strategy that splits the model, not the data."""
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    make_trainer(Keep(0.5), devices=2, strategy=strategy).fit(Configured(), make_loader())


def run_diverging() -> None:
    """Rank 1 makes another selection than rank 0."""
    make_trainer(ScoreRegistry(debug_sync=True), Diverges(0.5), devices=2, strategy="ddp").fit(Model(), make_loader())


if __name__ == "__main__":
    make_trainer(Keep(0.5), devices=2, strategy="ddp").fit(Raises(), make_loader())
