"""Both callbacks from a yaml file."""

from __future__ import annotations

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_prune.scoring import load_scores, save_scores
from tests.helpers import make_loader
from tests.scoring.helpers import ScoredModel

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

QUIET = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}


class YamlModel(ScoredModel):
    def __init__(self) -> None:
        super().__init__()

    def train_dataloader(self):
        return make_loader()


def run(tmp_path, callback, **init_args):
    callbacks = [{"class_path": f"lightning_prune.scoring.{callback}", "init_args": init_args}]
    config = {"trainer": {**QUIET, "enable_progress_bar": False, "callbacks": callbacks}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    cli = LightningCLI(YamlModel, args=["fit", "--config", str(path)], save_config_callback=None)
    return cli.model, next(c for c in cli.trainer.callbacks if type(c).__name__ == callback)


@pytest.mark.parametrize(
    "tracker",
    [
        {"class_path": "lightning_prune.scoring.TDDS", "init_args": {"window": 3}},
        {"class_path": "TDDS", "init_args": {"window": 3}},
        "Entropy",
        ["Entropy", {"class_path": "lightning_prune.scoring.TDDS", "init_args": {"window": 3}}],
    ],
    ids=["class_path", "short", "name", "list"],
)
def test_recorder(tmp_path, tracker):
    _, recorder = run(tmp_path, "ScoreRecorder", tracker=tracker, save_to=str(tmp_path / "scores"))
    assert len(recorder.paths) == (2 if isinstance(tracker, list) else 1)
    for path, one in zip(recorder.paths, recorder.trackers, strict=True):
        assert torch.equal(load_scores(path).scores, one.compute())


def test_static_pruning(tmp_path):
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0))
    path = save_scores(tmp_path / "a.npz", scores, method="AUM", keep="low")
    args = {"scores": str(path), "prune_ratio": 0.7, "selector": "ccs", "selector_args": {"hard_cutoff": 0.1}}
    model, callback = run(tmp_path, "StaticPruning", **args)
    last_epoch = [int(i) for epoch, step in model.steps if epoch == 2 for i in step["indices"]]
    assert sorted(last_epoch) == callback.choose(40).indices.tolist()
