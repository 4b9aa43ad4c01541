"""A run whose arithmetic is exact, so that its checkpoints resume bit for bit on any machine.

Weight, targets and losses are multiples of 1/32, and every batch has 4 samples: nothing is ever rounded.
``python -m tests.core.exact_run FOLDER`` writes the checkpoints of ``tests/fixtures``, of this code's state version.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import InfoBatch, WeightedLossMixin

EPOCHS = 5


class ExactModel(WeightedLossMixin, L.LightningModule):
    """One number, moved towards targets with random noise."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        targets, index = batch
        self.seen.append((self.current_epoch, index.tolist()))
        noise = torch.randint(0, 3, targets.shape) / 8  # of the global generator, which a checkpoint restores
        return self.weighted_loss((self.weight - targets - noise).abs())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)


def fit(*callbacks, ckpt_path=None):
    """Train from the start, or from a checkpoint; return trainer and model."""
    targets = torch.arange(40) * 7 % 40 / 8
    loader = DataLoader(TensorDataset(targets, torch.arange(40)), 4, shuffle=True, drop_last=True)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[InfoBatch(0.5, 0.8, seed=3), *callbacks],
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = ExactModel()
    torch.manual_seed(9)
    torch.rand(3 if ckpt_path else 1)  # a resumed process has another random state
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return trainer, model


def write_fixtures(folder):
    """Write checkpoints of an epoch's end, of the middle of the next, and of that one's last batch."""
    with tempfile.TemporaryDirectory() as temporary:
        kinds = {"step": {"every_n_train_steps": 1}, "end": {"save_on_train_epoch_end": True}}
        callbacks = [ModelCheckpoint(Path(temporary) / k, "{step}", save_top_k=-1, **v) for k, v in kinds.items()]
        fit(*callbacks)
        ends = sorted(int(path.stem.removeprefix("step=")) for path in Path(temporary).glob("end/*.ckpt"))
        chosen = {
            "end": f"end/step={ends[1]}",
            "middle": f"step/step={ends[1] + 3}",
            "last-batch": f"step/step={ends[2]}",
        }
        for name, path in chosen.items():
            source = Path(temporary) / f"{path}.ckpt"
            state = torch.load(source, weights_only=True)["callbacks"]["ScoreRegistry"]
            shutil.copyfile(source, Path(folder) / f"state-{state['version']}-{name}.ckpt")


if __name__ == "__main__":
    write_fixtures(sys.argv[1])
