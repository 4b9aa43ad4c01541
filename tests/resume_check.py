"""One short check that a method's interrupted run goes on as if it had not been; the matrix is in `test_resume.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import PruningCallback
from tests.helpers import Model, make_loader, make_trainer, registry_of


def check_resume(
    make_method: Callable[[], PruningCallback], folder: Path, make_model: Callable[[], Model] = Model
) -> None:
    """Compare a run of 6 epochs with those resumed from the end of the third and the middle of the fourth."""

    def fit(*checkpoints: ModelCheckpoint, ckpt_path: Path | None = None):
        trainer = make_trainer(make_method(), *checkpoints, max_epochs=6, enable_checkpointing=bool(checkpoints))
        model = make_model()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint")  # resumed runs write none
            trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
        return registry_of(trainer), model

    whole, model = fit(
        ModelCheckpoint(folder, "{epoch}-{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder, "end-{epoch}-{step}", save_on_train_epoch_end=True, save_top_k=-1),
    )
    end = next(folder.glob("end-epoch=2-*.ckpt"))
    middle = sorted(folder.glob("epoch=3-*.ckpt"), key=lambda path: int(path.stem.split("step=")[1]))[2]
    for path in (end, middle):
        resumed, again = fit(ckpt_path=path)
        assert again.seen
        assert again.seen[0][0] == 3
        assert model.seen[-len(again.seen) :] == again.seen
        table = resumed.to_dict()
        for name, values in whole.to_dict().items():
            assert torch.equal(values.float().nan_to_num(-1), table[name].float().nan_to_num(-1)), name
        assert torch.equal(whole.selection.indices, resumed.selection.indices)
        if whole.selection.weights is not None:
            assert torch.equal(whole.selection.weights, resumed.selection.weights)
