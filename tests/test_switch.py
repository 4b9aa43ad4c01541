"""A run goes on with another method than it was started with, from an epoch's end; every ordered pair."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.session import Session
from lightning_prune.core.step import StepRecord
from lightning_prune.testing.simulation import Script, ScriptedTable
from lightning_prune.testing.task import NUM_SAMPLES, equal
from tests import contract
from tests.helpers import Model, make_loader, make_trainer, registry_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once"),
    pytest.mark.filterwarnings("ignore:The checkpoint is of a run with"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]

HALF, BATCH = 3, 8
SCRIPT = Script.make(NUM_SAMPLES, 2 * HALF)
EVERYTHING = [None, *contract.CASES]


def make_session(case):
    session = Session(ScriptedTable(SCRIPT), None if case is None else contract.make(case), seed=1)
    session.draw_from(PlanBatchSampler(PlanSampler(NUM_SAMPLES, shuffle=True, seed=1), BATCH, False))
    session.table.max_epochs = 2 * HALF + 6
    return session


def train(session, epochs, first=None, stop=None):
    """Train some epochs, or the first batches of one; return their selections."""
    selections = []
    for epoch in range(epochs):
        session.begin_epoch(first if epoch == 0 else None)
        selections.append(session.table.selection)
        for batch_idx, drawn in enumerate(session.batches):
            if batch_idx == stop:
                return selections
            ids = torch.tensor(drawn)
            session.begin_step(batch_idx)
            if session.picks_now():
                probed = StepRecord()
                probed.record(*SCRIPT.step(session.table.epoch, ids))
                ids = ids[session.pick(probed)]
            session.step.record(*SCRIPT.step(session.table.epoch, ids))
            session.end_step(batch_idx)
        session.end_epoch()
    return selections


@cache
def first_half(case):
    session = make_session(case)
    session.start(NUM_SAMPLES, "cpu")
    train(session, HALF)
    return session.state_dict(save_rng=False)


@cache
def own_columns(case):
    return set(first_half(case)["columns"]) | set(first_half(case)["state"])


@pytest.mark.parametrize("after", EVERYTHING, ids=str)
def test_every_pair(after):
    """Losses and counts go on; what the method keeps of its own is as in a run that knows no other method."""
    for before in EVERYTHING:
        session, state = make_session(after), first_half(before)
        session.restore(state, NUM_SAMPLES, "cpu")
        assert equal(session.table.losses, state["losses"])
        assert torch.equal(session.table.counts, state["counts"])
        selections = train(session, HALF)
        table = session.table
        later = torch.stack([selection.mask(NUM_SAMPLES) for selection in selections]).sum(0)
        assert torch.equal(table.counts, state["counts"] + later)
        if before != after:
            kept = session.state_dict(save_rng=False)
            assert {*kept["columns"], *kept["state"]} - {"repb_before"} == own_columns(after), (before, after)


@pytest.mark.parametrize("after", EVERYTHING, ids=str)
def test_joining_a_run_without_us(after):
    """From epoch 3 on, of which nothing is known."""
    session = make_session(after)
    session.start(NUM_SAMPLES, "cpu")
    selections = train(session, HALF, first=HALF)
    for done, selection in enumerate(selections):
        if selection.weights is not None and after is not None and after.startswith("RePB"):
            assert selection.weights.max() <= max(1, done)  # not the epochs before it joined
    leaves_out = len(selections[0]) < NUM_SAMPLES or (after is not None and contract.picks(after))
    assert session.table.losses.isfinite().all() or leaves_out


@pytest.mark.parametrize("before", ["OrderDP", "RandomPruning", "InfoBatch"])
def test_attendance_is_counted_from_the_start_of_the_method(before):
    """RePB weighs by the share of its own epochs that a sample attended."""
    session = make_session("RePB")
    session.restore(first_half(before), NUM_SAMPLES, "cpu")
    first, second, third = train(session, 3)
    assert len(first) == NUM_SAMPLES  # nothing is known against any
    assert first.weights is None
    assert second.weights is None or bool((second.weights == 1).all())
    attended = first.mask(NUM_SAMPLES).float() + second.mask(NUM_SAMPLES)
    assert torch.equal(third.weights, 2 / attended[third.indices])


def test_back_and_forth():
    session = make_session("RePB")
    session.restore(first_half("OrderDP"), NUM_SAMPLES, "cpu")
    train(session, 2)
    for case in ("OrderDP", "RePB"):
        state = session.state_dict(save_rng=False)
        session = make_session(case)
        session.restore(state, NUM_SAMPLES, "cpu")
        session.table.epoch = HALF  # the script is short
        train(session, 2)
    assert int(session.table.state["repb_epochs"]) == 2


def test_the_other_method_is_named():
    session = make_session("InfoBatch")
    with pytest.warns(UserWarning, match="of a run with RePB, but the run is resumed with InfoBatch.*RePB kept"):
        session.restore(first_half("RePB"), NUM_SAMPLES, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_session("RePB").restore(first_half("InfoBatch"), NUM_SAMPLES, "cpu")  # which kept nothing


def test_other_values_recorded_in_the_middle_of_an_epoch_are_refused():
    """In the first epoch both select everything, but one records norms beside the losses."""
    session = make_session("RePB")
    session.start(NUM_SAMPLES, "cpu")
    train(session, 1, stop=3)
    with pytest.raises(StateMismatchError, match="derive the selection of epoch 0 again"):
        make_session("RePB, norms").restore(session.state_dict(save_rng=False), NUM_SAMPLES, "cpu")


@pytest.mark.parametrize(
    ("before", "after"), [(None, "RePB"), ("OrderDP", "RePB"), ("RePB", "OrderDP"), ("UCB", "AlignPrune")]
)
def test_through_the_trainer(before, after, tmp_path):
    saver = ModelCheckpoint(tmp_path, "end")
    callbacks = [] if before is None else [contract.make(before)]
    make_trainer(*callbacks, saver, enable_checkpointing=True, max_epochs=2).fit(Model(), make_loader())
    trainer, model = make_trainer(contract.make(after), max_epochs=5), Model()
    trainer.fit(model, make_loader(), ckpt_path=tmp_path / "end.ckpt")
    registry = registry_of(trainer)
    assert {epoch for epoch, _ in model.seen} == {2, 3, 4}
    assert all(registry.losses[i].item() == pytest.approx(loss) for i, loss in model.true_losses.items())
    counts = registry.counts.sum().item()
    assert counts - sum(len(ids) for _, ids in model.seen) in ((0,) if before is None else range(40, 81))
