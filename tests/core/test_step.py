"""A step's record, and `weighted_loss` of it; what a module sees of them is in ``tests/trainer/test_mixin.py``."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.core.step import ABSENT, Probed, StepRecord, weighted_loss
from tests.core.runs import Hardest, Run

LOSSES = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture
def session():
    """A session in the first step of a weighted epoch."""
    run = Run(Hardest())
    run.epoch()
    run.session.begin_epoch()
    next(iter(run.session.batches))
    run.session.begin_step(0)
    return run.session


def active(weights=None):
    step = StepRecord()
    step.active, step.weights = True, weights
    return step


def test_records_what_it_is_given_without_graphs():
    step, given = active(), torch.rand(3, 2, requires_grad=True)
    losses = LOSSES * given.sum()
    value = weighted_loss(step, losses, logits=given, targets=torch.tensor([0, 1, 0]), features=2 * given)
    assert value.requires_grad
    assert torch.equal(step.recorded_losses, losses)
    assert torch.equal(step.logits, given)
    assert torch.equal(step.features, 2 * given)
    assert step.targets.tolist() == [0, 1, 0]
    assert not any(kept.requires_grad for kept in (step.losses, step.logits, step.features))
    step.clear()
    assert (step.losses, step.logits, step.targets, step.features) == (None,) * 4


def test_the_graph_is_kept_where_it_is_wanted():
    step, scale = StepRecord(detach=False), torch.tensor(2.0, requires_grad=True)
    step.active = True
    weighted_loss(step, LOSSES * scale)
    assert torch.autograd.grad(step.losses.sum(), scale)[0] == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masked_samples_are_marked_absent(dtype):
    step = active()
    value = weighted_loss(step, LOSSES.to(dtype), mask=torch.tensor([True, False, True]))
    assert step.losses.tolist() == [1.0, ABSENT, 3.0]
    assert step.losses.dtype == torch.float32
    assert value.dtype == dtype
    assert value.item() == pytest.approx(4 / 3, rel=1e-2)


def test_weights_apply_and_the_first_recording_call_counts():
    step = active(torch.tensor([2.0, 1.0, 0.0]))
    assert weighted_loss(step, 10 * LOSSES, record=False) == 40 / 3
    assert step.losses is None
    assert weighted_loss(step, LOSSES) == 4 / 3
    assert weighted_loss(step, 5 * LOSSES) == 20 / 3
    assert torch.equal(step.losses, LOSSES)


@pytest.mark.parametrize("step", [None, StepRecord()], ids=["no step", "not active"])
def test_outside_a_step_it_is_a_plain_mean(step):
    assert weighted_loss(step, LOSSES) == 2
    assert step is None or step.losses is None


def test_an_empty_batch_is_zero_with_a_graph():
    losses = torch.zeros(0, requires_grad=True)
    value = weighted_loss(active(), losses)
    value.backward()
    assert value == 0


def test_a_probed_step_ends_at_its_first_recording_call():
    step = StepRecord()
    step.probing = True
    assert weighted_loss(step, LOSSES, record=False) == 2
    with pytest.raises(Probed):
        weighted_loss(step, LOSSES, logits=torch.zeros(3, 2))
    assert torch.equal(step.losses, LOSSES)
    assert step.logits.shape == (3, 2)


def test_no_handler_of_exceptions_catches_the_end_of_a_probe():
    assert not issubclass(Probed, Exception)


def test_ids_are_the_samplers_unless_given(session):
    step, ids = session.step, session.open_epoch.shard[:4]
    assert torch.equal(step.indices, ids)
    weighted_loss(step, torch.ones(2), indices=ids[[3, 1]])
    assert torch.equal(step.indices, ids[[3, 1]])
    with pytest.raises(RuntimeError, match="to belong to a running epoch, but it does not"):
        _ = StepRecord().indices


def test_weights_follow_given_ids(session):
    """Those of a batch that a collate function made shorter, or put in another order; 1 for a sample of elsewhere."""
    ids = session.open_epoch.shard[:4][[3, 1]]
    assert weighted_loss(session.step, torch.ones(2), indices=ids) == (1 + ids / 8).mean()
    left_out = (~session.table.selected).nonzero().flatten()[:1]
    assert weighted_loss(session.step, torch.ones(1), indices=left_out) == 1


def test_losses_of_given_ids_are_credited_to_them(session):
    ids = session.open_epoch.shard[:4][[3, 1]]
    before = session.table.losses.clone()
    weighted_loss(session.step, torch.tensor([8.0, 9.0]), indices=ids)
    session.end_step(0)
    session.end_epoch()
    assert session.table.losses[ids].tolist() == [8.0, 9.0]
    others = torch.ones_like(before, dtype=torch.bool).index_fill_(0, ids, False)
    assert torch.equal(session.table.losses[others], before[others])


def test_a_wrong_length_says_what_to_write(session):
    match = r"Expected 4 losses.*but got 3.*weighted_loss\(losses, indices=indices\)"
    with pytest.raises(ValueError, match=match):
        weighted_loss(session.step, LOSSES)
    session.step.record(LOSSES, None, None, None, None, None)
    with pytest.raises(ValueError, match=match):
        session.end_step(0)
