"""Every method on a device that is not the CPU: no tensor on the wrong one, the same results, no step that waits."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_prune import ScoreRegistry
from lightning_prune.testing.processes import fork
from tests import contract, emulated_streams
from tests.helpers import Model, make_loader, make_trainer
from tests.processes import python

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs torch 2.9"
)
NUM_SAMPLES, EPOCHS = 120, 4
WORDS = NUM_SAMPLES // 10
"""Elements from which a copy counts as one of O(n): a batch has 10."""


def train(method, **trainer):
    """Train and return what came of it, and what was waited for in steps, and in the turns of epochs."""
    from tests.emulated_device import counted

    steps, turns = Counter(), []

    class Watched(ScoreRegistry):
        def on_train_batch_start(self, *args):
            with counted(steps):
                super().on_train_batch_start(*args)

        def on_train_batch_end(self, *args):
            with counted(steps):
                super().on_train_batch_end(*args)

        def on_train_epoch_start(self, *args):
            turns.append(Counter())
            with counted(turns[-1]):
                super().on_train_epoch_start(*args)

        def on_train_epoch_end(self, *args):
            turns.append(Counter())
            with counted(turns[-1]):
                super().on_train_epoch_end(*args)

    class WatchedModel(Model):
        def weighted_loss(self, losses, **kwargs):
            with counted(steps):
                return super().weighted_loss(losses, **kwargs)

    model, registry = WatchedModel(), Watched()
    make_trainer(registry, method, max_epochs=EPOCHS, **trainer).fit(model, make_loader(NUM_SAMPLES, 10))
    return {
        "seen": model.seen,
        "weights": {name: value.cpu() for name, value in model.state_dict().items()},
        "table": registry.to_dict(),
        "state": registry.state_dict(),
        "saved": registry.saved_fraction,
        "device": registry.losses.device.type,
        "steps": dict(steps),
        "turns": [dict(turn) for turn in turns],
    }


def train_all(folder):
    from tests.emulated_device import on_device

    warnings.simplefilter("ignore")
    for case in contract.CASES:
        if case in contract.FROM_FILES:
            continue
        torch.save(train(contract.make(case)), folder / f"{case} cpu.pt")
        torch.save(train(contract.make(case), **on_device()), folder / f"{case} emulated.pt")
    for name in emulated_streams.CASES:
        torch.save(emulated_streams.train(name), folder / f"{name} cpu.pt")
        torch.save(emulated_streams.train(name, **on_device()), folder / f"{name} emulated.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """In a fresh process: a backend is registered for good, and autograd counts its devices once."""
    folder = tmp_path_factory.mktemp("emulated")
    python("-m", "tests.test_emulated_device", folder)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


CASES = [case for case in contract.CASES if case not in contract.FROM_FILES]


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_the_cpu(runs, case):
    here, there = runs[f"{case} cpu"], runs[f"{case} emulated"]
    assert there["device"] == "emulated"
    assert there["seen"] == here["seen"]
    assert there["saved"] == here["saved"]
    for kind in ("weights", "table"):
        for name, values in here[kind].items():
            torch.testing.assert_close(there[kind][name], values, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits(runs, case):
    assert runs[f"{case} emulated"]["steps"] == {}
    assert runs[f"{case} cpu"]["turns"] == [{}] * 2 * EPOCHS  # of the emulated device alone is counted


@pytest.mark.parametrize("case", CASES)
def test_what_an_epoch_waits_for(runs, case):
    """Between two epochs: a few copies of O(n), for the loader draws on the host, and a constant number of scalars."""
    turns = runs[f"{case} emulated"]["turns"]
    for end, start in zip(turns[1::2], turns[2::2], strict=False):
        total = Counter(end) + Counter(start)
        sizes = [int(size) for name in total for size in re.findall(r"copy of (\d+)", name) for _ in range(total[name])]
        copies, scalars = {"RePB": (4, 45), "Budget": (16, 180)}.get(case.split(",")[0], (3, 45))
        assert sum(size >= WORDS for size in sizes) <= copies  # a budget asks its base up to sixteen times
        assert total.total() <= scalars


@pytest.mark.parametrize("name", emulated_streams.CASES)
def test_streams_and_several_tables(runs, name):
    """The same results, and no step that waits."""
    here, there = runs[f"{name} cpu"], runs[f"{name} emulated"]
    assert there["device"] == "emulated"
    assert there["saved"] == here["saved"]
    for column, values in here["tables"].items():
        torch.testing.assert_close(there["tables"][column], values, equal_nan=True)
    assert there["steps"] == {}


def test_a_tensor_of_another_device_is_refused(tmp_path):
    """The emulation can fail: it tells the CPU from itself, and counts."""
    child = fork(_mix, log=tmp_path / "log")
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()


def _mix():
    from tests.emulated_device import DEVICE, counted

    there = torch.arange(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="on the same device, but add got emulated:0 and cpu"):
        there + torch.arange(3)
    waited = Counter()
    with counted(waited):
        assert (there + 1).tolist() == [1, 2, 3]
        assert int(there.sum()) == 3
        assert there[there > 0].cpu().tolist() == [1, 2]
        assert bool((there * torch.tensor(2)).max() == 4)  # a 0-d tensor may live anywhere
    assert waited == {"copy of 3": 1, "copy of 2": 1, "_local_scalar_dense": 2, "index": 1}


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]))
