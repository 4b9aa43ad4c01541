"""A training run that a test may kill at any moment: ``python -m tests.kill_run FOLDER METHOD EPOCHS``.

It resumes from the newest checkpoint in FOLDER, if there is one, and writes what it ended with to ``result.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import InfoBatch, RandomPruning
from tests.helpers import Model, make_loader, make_trainer, registry_of

METHODS = {"infobatch": lambda: InfoBatch(seed=1), "random": lambda: RandomPruning(0.4, seed=1)}


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]), reverse=True):
        try:
            torch.load(path, weights_only=True)
        except Exception:
            continue
        return path
    return None


def main() -> None:
    folder, method, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = make_trainer(METHODS[method](), checkpoint, max_epochs=epochs, enable_checkpointing=True)
    torch.manual_seed(4)
    model = Model(dropout=0.3)
    trainer.fit(model, make_loader(num_workers=0), ckpt_path=newest(folder))
    result = {"weights": model.state_dict(), "table": registry_of(trainer).to_dict(), "seen": model.seen}
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main()
