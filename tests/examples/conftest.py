"""Run a recipe's yaml for two steps an epoch on tiny files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_prune import ScoreRegistry
from lightning_prune.cli import PruneCLI, main

ROOT = Path(__file__).parents[2]
QUICK = {
    "trainer.max_epochs": 3,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.precision": "32-true",
    "trainer.logger": "false",
    "trainer.enable_checkpointing": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "data.num_workers": 0,
}


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """Return a function that fits a yaml by the command line, with arguments changed, and returns its objects.

    An argument that is None is left out, for data without one of that name.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    done = []
    monkeypatch.setattr(PruneCLI, "after_fit", lambda cli: done.append(cli), raising=False)  # LightningCLI's own hook

    def run(*configs: str, **changed):
        options = {**QUICK, **{name.replace("__", "."): value for name, value in changed.items()}}
        main(
            [
                "fit",
                *(f"--config={ROOT / 'examples' / config}" for config in configs),
                *(f"--{name}={value}" for name, value in options.items() if value is not None),
            ]
        )
        return done.pop()

    return run


def registry_of(cli) -> ScoreRegistry:
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, ScoreRegistry))
