"""The examples of engines: Optuna's search, and Ray Train where that is installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

from lightning_prune.testing.processes import run_ranks
from tests.helpers import make_trainer
from tests.processes import ROOT, python

EPOCHS = 4


def test_a_search_prunes_trials_and_samples():
    optuna = pytest.importorskip("optuna")
    from examples.engines.optuna_search import main

    study = main(["--trials", "6", "--max_epochs", "4"])
    ended = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    done = [trial for trial in study.trials if trial not in ended]
    assert ended
    assert all(trial.user_attrs["epochs"] == 4 for trial in done)
    assert all(trial.user_attrs["epochs"] < 4 for trial in ended)
    assert all(trial.user_attrs["steps"] < 45 * trial.user_attrs["epochs"] for trial in done)
    assert study.best_value > 0.8


def test_ray_goes_on_after_a_worker_has_died(tmp_path):
    """From the checkpoint that the callback has reported: two workers end as two ranks that nothing happened to."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: pip install 'ray[train]'")
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    environment |= {"RAY_worker_niceness": "0"}  # else a busy machine starves them
    python("-m", "tests.examples.test_engines", tmp_path, **environment)
    metrics = torch.load(tmp_path / "metrics.pt")
    assert (tmp_path / "died").exists()
    assert (metrics["epoch"], metrics["prune/saved_fraction"] > 0.05) == (EPOCHS - 1, True)
    run_ranks(train_without_ray, tmp_path, folder=tmp_path)
    alone = torch.load(tmp_path / "alone.pt")
    del alone["prune/saved_seconds"]
    assert {name: metrics[name] for name in alone} == alone


def train_without_ray(rank, folder):
    from examples.digits.task import DigitsData, DigitsModel
    from lightning_prune import InfoBatch

    L.seed_everything(0, verbose=False)
    trainer = make_trainer(InfoBatch(prune_ratio=0.5), devices=2, strategy="ddp", max_epochs=EPOCHS)
    trainer.fit(DigitsModel(width=8), DigitsData())
    if rank == 0:
        torch.save({name: value.item() for name, value in trainer.callback_metrics.items()}, folder / "alone.pt")


class DieOnce(L.Callback):
    """Ends the process of one worker in the middle of the third epoch, once."""

    def __init__(self, marker):
        self.marker = marker

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 3 and trainer.global_rank == 1 and not self.marker.exists():
            self.marker.touch()
            raise RuntimeError("this worker dies")


def run_ray(folder):
    import ray

    from examples.engines import ray_train

    args = ray_train.parse(["--max_epochs", str(EPOCHS), "--storage", str(folder / "storage")])
    ray.init(num_cpus=3, include_dashboard=False)
    try:
        trainer = ray_train.make_trainer(args, lambda config: ray_train.train(config, [DieOnce(folder / "died")]))
        torch.save(trainer.fit().metrics, folder / "metrics.pt")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    run_ray(Path(sys.argv[1]))
