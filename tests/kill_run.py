"""A training run that a test may kill at any moment.

It resumes from the newest checkpoint in FOLDER, if there is one, and writes what it ended with to ``result.pt``.
"""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune.scoring import ScoreRecorder
from tests import contract
from tests.helpers import Model, make_loader, make_trainer, registry_of

TRACKERS = ["AUM", "EL2N", "Forgetting", "TDDS", "DUAL"]


def callbacks_of(name: str, folder: Path) -> list[L.Callback]:
    """Return the callbacks under test."""
    if name == "recorder":
        return [ScoreRecorder(TRACKERS, folder / "scores")]
    return [contract.make(name)]


NAMES = (*contract.METHODS, "recorder")


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]), reverse=True):
        try:
            torch.load(path, weights_only=True)
        except Exception:
            continue
        return path
    return None


def run(folder: Path, name: str, epochs: int) -> None:
    """Train to the end, from where the last run in ``folder`` was killed."""
    torch.set_num_threads(1)
    checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
    callbacks = callbacks_of(name, folder)
    trainer = make_trainer(*callbacks, checkpoint, max_epochs=epochs, enable_checkpointing=True)
    torch.manual_seed(4)
    model = Model(dropout=0.3)
    trainer.fit(model, make_loader(num_workers=0), ckpt_path=newest(folder))
    scores = {
        f"{path.stem}/{column}": torch.from_numpy(values)
        for path in sorted(folder.glob("scores/*.npz"))
        for column, values in np.load(path).items()
        if column != "meta"
    }
    table = registry_of(trainer).to_dict()
    result = {"weights": model.state_dict(), "table": table, "scores": scores, "seen": model.seen}
    torch.save(result, folder / "result.pt")
