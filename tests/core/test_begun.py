"""An epoch that others go on with, of any number, with batches of any size: each sample is trained once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.core import checkpoint
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.draw import Draw
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.step import StepRecord, weighted_loss
from tests.core.runs import NUM_SAMPLES, Hardest, make_session

BATCHES = [[*range(5)], [5, 6], [*range(7, 13)], [13, 14, 15, 16], [17, 18, 19], [20, 21]]
"""Of a batch sampler of a user's."""


class Picks(Hardest):
    """Trains all but the last sample of each batch that it can spare one of."""

    picks_in_batch = True

    def pick(self, step, generator):
        return torch.arange(max(1, len(step.losses) - 1))


class Rank:
    """One process: losses are the sample's and the epoch's own."""

    def __init__(self, method, state, *, batch_size, rank=0, world_size=1, listed=False):
        self.session = session = make_session(method, batch_size=batch_size, rank=rank, world_size=world_size)
        if listed:
            sampler = PlanSampler(NUM_SAMPLES, shuffle=False, seed=session.seed, rank=rank, world_size=world_size)
            session.draw_from(PlanBatchSampler(sampler, None, drop_last=False, draw=Draw(BATCHES, NUM_SAMPLES)))
        if state is None:
            session.start(NUM_SAMPLES, "cpu")
        else:
            session.restore(state, NUM_SAMPLES, "cpu")
        self.seen = []

    @property
    def left(self):
        return len(self.session.batches) - self.session.open_epoch.batches_done

    def train(self, steps=None):
        """Train some steps of the open epoch, or all that are left."""
        session = self.session
        running = session.begin_epoch() if session.running is None else session.running
        running.batch_sampler.skip = running.batches_to_skip
        done = running.batches_done
        for batch_idx, ids in enumerate(session.batches, done):
            if steps is not None and batch_idx == done + steps:
                break
            session.begin_step(batch_idx)
            step, losses = session.step, losses_of(ids, session.table.epoch)
            if session.picks_now():
                probed = StepRecord()
                probed.losses = losses
                losses = losses[session.pick(probed)]
            self.seen.append((ids, None if step.weights is None else step.weights.tolist()))
            weighted_loss(step, losses)
            session.end_step(batch_idx)


def losses_of(ids, epoch):
    return (torch.tensor(ids) * 7 % NUM_SAMPLES + 1) / 4 + epoch


def save(ranks, monkeypatch):
    """Return the state that each of these ranks would save."""
    parts = [checkpoint.local_part(rank.session.running, save_rng=True) for rank in ranks]
    monkeypatch.setattr(checkpoint, "gather", lambda local, world_size: parts)
    states = [rank.session.state_dict() for rank in ranks]
    assert all(state["steps"][0].tolist() == states[0]["steps"][0].tolist() for state in states)
    return states[0]


def uninterrupted(method, epochs, **kwargs):
    alone = Rank(method, None, **kwargs)
    for _ in range(epochs):
        alone.seen.clear()
        alone.train()
        order = alone.session.open_epoch.plan.order.tolist()
        alone.session.end_epoch()
    return alone, order


STAGES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(stages=STAGES, epochs=st.integers(1, 2), listed=st.booleans())
def test_whoever_goes_on_trains_each_sample_once(stages, epochs, listed):
    """In an epoch of all samples, and in one of some, with weights and values of the method's own."""
    alone, order = uninterrupted(Hardest(), epochs, batch_size=4, listed=listed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        first, _ = uninterrupted(Hardest(), epochs - 1, batch_size=4, listed=listed) if epochs > 1 else (None, None)
        state, trained = None if first is None else first.session.state_dict(), []
        for world_size, batch_size, steps in stages:
            where = {"batch_size": batch_size, "world_size": world_size, "listed": listed}
            ranks = [Rank(Hardest(), state, rank=rank, **where) for rank in range(world_size)]
            for rank in ranks:
                if rank.session.running is None:
                    rank.session.begin_epoch()
            done, steps = ranks[0].session.open_epoch.positions_done, min(steps, ranks[0].left)
            for rank in ranks:
                rank.train(steps)
                assert [len(ids) for ids, _ in rank.seen].count(0) == 0
            new = ranks[0].session.open_epoch.positions_done
            trained += order[done:new]
            shards = [i for rank in ranks for ids, _ in rank.seen for i in ids]
            assert set(shards) >= set(order[done:new])
            if new < len(order):  # then nothing was padded
                assert sorted(shards) == sorted(order[done:new])
            state = save(ranks, monkeypatch)
        last = Rank(Hardest(), state, batch_size=5, listed=listed)
        last.train()
    assert trained + [i for ids, _ in last.seen for i in ids] == order
    weights = {i: w for ids, given in alone.seen for i, w in zip(ids, given or [], strict=False)}
    for ids, given_weights in last.seen:
        assert (given_weights or []) == [weights[i] for i in ids if weights]
    last.session.end_epoch()
    table, its = alone.session.table, last.session.table
    for name, values in table.to_dict().items():
        assert torch.equal(values.nan_to_num(-1.0), its.to_dict()[name].nan_to_num(-1.0)), name
    assert (table.trained_steps, table.full_steps) == (its.trained_steps, its.full_steps)
    assert torch.equal(alone.session.begin_epoch().plan.order, last.session.begin_epoch().plan.order)


def test_the_steps_are_those_that_were_trained(monkeypatch):
    """Which methods with windows of batches go by."""
    two = [Rank(Hardest(), None, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    for rank in two:
        rank.train(2)
    last = Rank(Hardest(), save(two, monkeypatch), batch_size=4)
    last.train()
    records = []
    last.session.observers.append(lambda record, _: records.append(record.steps.tolist()))
    last.session.end_epoch()
    assert records == [[0] * 6 + [1] * 6 + [2] * 4 + [3] * 4 + [4] * 2]


def test_what_picks_have_left_out_is_counted_once(monkeypatch):
    two = [Rank(Picks(warmup_epochs=0), None, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    for rank in two:
        rank.train(2)
    state = save(two, monkeypatch)
    assert state["dropped"] == 4
    last = Rank(Picks(warmup_epochs=0), state, batch_size=5)
    last.train(1)
    again = Rank(Picks(warmup_epochs=0), save([last], monkeypatch), batch_size=2)
    again.train()
    left_out = 4 + sum(len(ids) > 1 for ids, _ in [*last.seen, *again.seen])
    positions = len(again.session.open_epoch.plan.order)
    again.session.end_epoch()
    assert again.session.table.trained_steps == positions - left_out


def test_ids_told_ahead_of_their_turn_are_kept(monkeypatch):
    """A step may tell the ids of other samples of its shard than the sampler has drawn."""
    one = Rank(Hardest(), None, batch_size=4)
    one.train(1)
    session, order = one.session, one.session.open_epoch.plan.order
    session.begin_step(1)
    weighted_loss(session.step, torch.full((1,), 50.0), indices=order[-1:].long())
    session.end_step(1)
    last = Rank(Hardest(), save([one], monkeypatch), batch_size=5)
    record = last.session.open_epoch.collect()
    assert record.indices.tolist() == [*order[:4].tolist(), int(order[-1])]
    assert record.losses[-1] == 50


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state, batches: state.pop("steps"), "an older version did not note"),
        (lambda state, batches: setattr(batches, "is_alone", False), "there are several train loaders"),
    ],
)
def test_what_cannot_be_shared_anew_is_refused(change, why):
    one = Rank(Hardest(), None, batch_size=4)
    one.train(2)
    state = one.session.state_dict()
    session = make_session(Hardest(), batch_size=5)
    change(state, session.batches)
    with pytest.raises(StateMismatchError, match=rf"Expected 1 process\(es\) with 4 samples per step.*with 5: {why}"):
        session.restore(state, NUM_SAMPLES, "cpu")
