"""Records scores, and prunes by them, in two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_prune.scoring import ScoreRecorder, StaticPruning
from tests.helpers import make_loader, make_trainer
from tests.scoring.helpers import ScoredModel, all_trackers

NUM_SAMPLES, EPOCHS = 41, 5  # odd: a sampler pads


class TableModel(ScoredModel):
    """Its logits depend on the sample and the epoch alone, so every world sees the same."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, targets, indices = batch
        generator = torch.Generator().manual_seed(self.current_epoch)
        logits = torch.randn(NUM_SAMPLES, 2, generator=generator)[indices] + 0 * self.layer(features)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        self.seen.append((self.current_epoch, indices.tolist()))
        return self.weighted_loss(losses, logits=logits, targets=targets, features=features)


def run(devices: int, folder: Path, name: str, ckpt_path: Path | None = None) -> Path:
    recorder = ScoreRecorder(all_trackers(), folder / name)
    checkpoint = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=1, save_top_k=-1)
    strategy = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    trainer = make_trainer(recorder, checkpoint, max_epochs=EPOCHS, enable_checkpointing=True, **strategy)
    trainer.fit(TableModel(), make_loader(NUM_SAMPLES), ckpt_path=ckpt_path)
    scores = {type(t).__name__: t.compute() for t in recorder.trackers}
    torch.save(scores, folder / f"{name}.{trainer.global_rank}.pt")
    return recorder.paths[0]


def run_all(devices: int, folder: Path) -> None:
    path = run(devices, folder, "whole")
    if devices > 1:
        run(
            devices, folder, "resumed", folder / "whole" / "step=16.ckpt"
        )  # 6 steps an epoch: in the middle of the third
    model, strategy = TableModel(), {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    trainer = make_trainer(StaticPruning(path, 0.5, "ccs", seed=1), max_epochs=2, **strategy)
    trainer.fit(model, make_loader(NUM_SAMPLES))
    torch.save(model.seen, folder / f"seen.{trainer.global_rank}.pt")
