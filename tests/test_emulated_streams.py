"""Streams, and several tables, on a device that is not the CPU: the same results, and no step that waits."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_prune import InfoBatch, RePB, ScoreRegistry, SelectiveBackprop
from tests.helpers import make_trainer
from tests.processes import python
from tests.streams import IdModel, make_stream
from tests.test_several_tables import NAMES, Semi, loaders

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs torch 2.9"
)
CASES = {
    "weight 0": (lambda: InfoBatch(0.5), lambda: make_stream(), IdModel, {"num_samples": 40}),
    "dropped": (lambda: RePB(0.5), lambda: make_stream(pruned=True), IdModel, {"num_samples": 40}),
    "picks": (lambda: SelectiveBackprop(0.5, start=0.0), lambda: make_stream(), IdModel, {"num_samples": 40}),
    "several": (lambda: InfoBatch(0.5), loaders, Semi, {"loader": NAMES}),
}


def train(name, **trainer):
    """Return what came of a run, and what its steps waited for after the first epoch."""
    from tests.emulated_device import counted

    make, loader, model_class, kwargs = CASES[name]
    steps = Counter()

    class Watched(ScoreRegistry):
        def on_train_batch_end(self, trainer, *args):
            with counted(steps if trainer.current_epoch else Counter()):
                super().on_train_batch_end(trainer, *args)

    class WatchedModel(model_class):
        def weighted_loss(self, losses, **kwargs):
            with counted(steps if self.training and self.current_epoch else Counter()):
                return super().weighted_loss(losses, **kwargs)

    model, registry = WatchedModel(), Watched(**kwargs)
    make_trainer(registry, make(), max_epochs=3, **trainer).fit(model, loader())
    tables = registry.tables or {"": registry}
    return {
        "tables": {f"{key}.{column}": v for key, t in tables.items() for column, v in t.to_dict().items()},
        "saved": registry.saved_fraction,
        "device": next(iter(tables.values())).losses.device.type,
        "steps": dict(steps),
    }


def train_all(folder):
    from tests.emulated_device import on_device

    warnings.simplefilter("ignore")
    for name in CASES:
        torch.save(train(name), folder / f"{name} cpu.pt")
        torch.save(train(name, **on_device()), folder / f"{name} emulated.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """In a fresh process: a backend is registered for good, and autograd counts its devices once."""
    folder = tmp_path_factory.mktemp("emulated")
    python("-m", "tests.test_emulated_streams", folder)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_cpu_and_no_step_waits(runs, name):
    here, there = runs[f"{name} cpu"], runs[f"{name} emulated"]
    assert there["device"] == "emulated"
    assert there["saved"] == here["saved"]
    for column, values in here["tables"].items():
        torch.testing.assert_close(there["tables"][column], values, equal_nan=True)
    assert there["steps"] == {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]))
