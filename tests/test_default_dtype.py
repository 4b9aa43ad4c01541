"""`torch.set_default_dtype` changes nothing of ours: whatever we make says its own type."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import ScoreRegistry
from lightning_prune.analysis import PruningMonitor
from lightning_prune.scoring import ScoreRecorder
from lightning_prune.scoring.recorder import TRACKERS
from lightning_prune.testing.simulation import Script, simulate
from lightning_prune.testing.task import NUM_SAMPLES, equal
from tests import contract
from tests.helpers import Model, make_loader, make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once"),
    pytest.mark.filterwarnings("ignore:.*(dirpath|callbacks used to create)"),
]

EPOCHS = 8
SCRIPT = Script.make(NUM_SAMPLES, EPOCHS)
ROUNDED = Script(SCRIPT.losses.bfloat16().float(), SCRIPT.logits, SCRIPT.features, SCRIPT.targets)


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def run(case, script):
    """Return each epoch's selection and what is known at its end, by plain calls."""
    found = []
    for table in simulate(contract.make(case), script, seed=3):
        selection = table.selection
        found.append((selection, {name: values.clone() for name, values in table.to_dict().items()}))
    return found


@cache
def in_float32(case):
    assert torch.get_default_dtype() == torch.float32
    return run(case, ROUNDED)


@pytest.fixture(params=contract.CASES)
def case_and_run(request):
    return request.param, in_float32(request.param)  # before the default is set


def test_every_method(case_and_run, default_dtype):
    """The same selections, weights and state, bit for bit, given the same losses in the default type."""
    case, plain = case_and_run
    losses = ROUNDED.losses.to(default_dtype)
    found = run(case, Script(losses, SCRIPT.logits, SCRIPT.features, SCRIPT.targets))
    assert len(found) == len(plain) == EPOCHS + 1
    for (selection, table), (other, other_table) in zip(found, plain, strict=True):
        assert table.keys() == other_table.keys()
        for name, values in table.items():
            assert equal(values, other_table[name]), name
        if selection is not None:
            assert torch.equal(selection.indices, other.indices)
            assert equal(selection.weights, other.weights)


@pytest.mark.parametrize("case", contract.CASES)
def test_every_method_through_the_trainer(case, default_dtype, tmp_path):
    """With a model of the default type, and resumed from the middle of an epoch."""
    registry, saver = ScoreRegistry(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    callbacks = [registry, contract.make(case), PruningMonitor(targets=1), saver]
    make_trainer(*callbacks, enable_checkpointing=True, max_epochs=5).fit(Model(), make_loader_of(default_dtype))
    assert registry.losses.dtype == torch.float32
    assert {v.dtype for v in registry.to_dict().values()} <= {
        torch.float32, torch.int16, torch.int32, torch.int64, torch.bool, torch.uint8, torch.float64,
    }  # fmt: skip
    again = make_trainer(contract.make(case), max_epochs=3)
    again.fit(Model(), make_loader_of(default_dtype), ckpt_path=tmp_path / "step=7.ckpt")


def make_loader_of(dtype):
    loader = make_loader(batch_size=8)
    x, y, ids = loader.dataset.tensors
    loader.dataset.tensors = (x.to(dtype), y, ids)
    return loader


def test_the_monitor_compares_gradients(default_dtype):
    monitor = PruningMonitor(gradient_every_n_epochs=1, gradient_samples=8)
    make_trainer(contract.make("InfoBatch"), monitor, max_epochs=2).fit(Model(), make_loader_of(default_dtype))
    assert monitor.history[0]["grad_cosine"] == pytest.approx(1, abs=0.02)


def test_every_tracker(default_dtype):
    recorder = ScoreRecorder(list(TRACKERS))
    make_trainer(recorder, max_epochs=12).fit(Model(), make_loader_of(default_dtype))
    assert {tracker.compute().dtype for tracker in recorder.trackers} == {torch.float32}
