"""One short check that a method's interrupted run goes on as if it had not been, for settings beside the contract's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from lightning_prune import PruningCallback
from lightning_prune.testing.method import checkpointing, step_of
from lightning_prune.testing.task import Outcome, assert_resumed
from tests.helpers import Model, make_loader, make_trainer


def check_resume(
    make_method: Callable[[], PruningCallback], folder: Path, make_model: Callable[[], Model] = Model
) -> None:
    """Compare a run of 6 epochs with those resumed from the end of the third and the middle of the fourth."""

    def fit(name: str, ckpt_path: Path | None = None) -> Outcome:
        callbacks = [make_method(), *([] if ckpt_path else checkpointing(folder / name))]
        trainer, model = make_trainer(*callbacks, max_epochs=6, enable_checkpointing=ckpt_path is None), make_model()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint")  # resumed runs write none
            trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
        return Outcome.of(trainer, model)

    whole = fit("whole")
    end = next(folder.glob("whole/end/epoch=2-*.ckpt"))
    middle = sorted(folder.glob("whole/step/epoch=3-*.ckpt"), key=step_of)[1]
    for name, path in (("end", end), ("middle", middle)):
        resumed = fit(name, path)
        assert resumed.seen[0][0] == 3
        assert_resumed(whole, resumed)
