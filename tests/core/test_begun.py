"""An epoch that others go on with, of any number, with batches of any size: each sample is trained once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.core import checkpoint
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.draw import Draw
from lightning_prune.core.method import Method
from lightning_prune.core.part import Part
from lightning_prune.core.part_files import read_part, write_part
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.shared_plan import shared_digest
from lightning_prune.core.step import StepRecord, weighted_loss
from lightning_prune.testing import processes
from lightning_prune.testing.task import equal
from tests.core.runs import NUM_SAMPLES, Hardest, Table, make_session

BATCHES = [[*range(5)], [5, 6], [*range(7, 13)], [13, 14, 15, 16], [17, 18, 19], [20, 21]]
"""Of a batch sampler of a user's."""


class Picks(Hardest):
    """Trains all but the last sample of each batch that it can spare one of."""

    picks_in_batch = True

    def pick(self, step, generator):
        return torch.arange(max(1, len(step.losses) - 1))


class Rank:
    """One process: losses are the sample's and the epoch's own."""

    def __init__(self, method, state, *, listed=False, num_samples=NUM_SAMPLES, **where):
        self.session = session = make_session(method, num_samples=num_samples, **where)
        if listed:
            rank, world_size = where.get("rank", 0), where.get("world_size", 1)
            sampler = PlanSampler(NUM_SAMPLES, shuffle=False, seed=session.seed, rank=rank, world_size=world_size)
            session.draw_from(PlanBatchSampler(sampler, None, drop_last=False, draw=Draw(BATCHES, NUM_SAMPLES)))
        if state is None:
            session.start(num_samples, "cpu")
        else:
            session.restore(state, num_samples, "cpu")
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


class SharedTable(Table):
    sharded = True


class AboveWindow(Method):
    """Keeps what lay above the mean of its window of two steps, with a weight by how far, and every fourth other."""

    weighs_losses = shares_state = True
    record_names = ("double",)

    def setup_columns(self, registry):
        registry.add_column("above", fill=1.0)

    def select(self, registry, epoch, generator):
        above = registry.column("above")
        ids = torch.arange(registry.part.start, registry.part.stop)
        chosen = Selection.from_mask((above > 0) | (ids % 4 == 0))
        return Selection(chosen.indices, 1 + above[chosen.indices].abs())

    def per_sample(self, step):
        return {"double": 2 * step.losses}

    def on_epoch_recorded(self, registry, record):
        told = record.windows("double", 2).judged(over_mean, torch.float32)
        registry.column("above").scatter_(0, record.indices, told)


def over_mean(rows, inside):
    counts = torch.full_like(rows, True, dtype=torch.bool) if inside is None else inside
    means = rows.where(counts, 0).double().sum(1, keepdim=True) / counts.sum(1, keepdim=True)
    return (rows - means).float()


SHARED = [(2, 3, 3), (1, 5, 1), (3, 2, 2), (2, 5, 2), (3, 4, None)]
"""Ranks, samples of each in a batch, and steps: later ones begin where no number of ranks divides what is done."""
LONG = 107


def run_of(state, batch_size, table=None, rank=0, world_size=1):
    return Rank(
        AboveWindow(warmup_epochs=1),
        state,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        num_samples=LONG,
        table=table,
    )


def end_of(run):
    """End the epoch and plan the next; return what is known then."""
    run.session.end_epoch()
    plan = run.session.begin_epoch().plan
    table = run.session.table
    return {**table.to_dict(), "steps": (table.trained_steps, table.full_steps), "plan": (plan.order, plan.weights)}


def shared_stage(rank, number, folder):
    """Be a rank of a stage of the second epoch: go on from what those before have saved, and save in turn."""
    world_size, batch_size, steps = SHARED[number]
    part, state = Part.of(LONG, rank, world_size), None
    if number > 0:
        state = read_part(folder / str(number), torch.load(folder / f"{number}.pt"), part)
    run = run_of(state, batch_size, SharedTable(), rank, world_size)
    if number == 0:
        run.train()
        run.session.end_epoch()
        run.seen.clear()
    run.train(steps)
    end = None
    if steps is None:
        end = end_of(run)
    else:
        rest = write_part(folder / str(number + 1), run.session.state_dict(), part)
        torch.save(rest, folder / f"{number + 1}.pt")  # the same on every rank
    torch.save((run.seen, end), folder / f"{number}-{rank}.pt")


@pytest.mark.ddp
def test_processes_that_share_the_state_go_on_as_one_that_has_all_of_it(tmp_path):
    """Each step of all trains the same samples, with the same weights, and windows of steps are judged alike."""
    processes.skip_without_fork()
    state = None
    for number, (world_size, batch_size, steps) in enumerate(SHARED):
        run = run_of(state, world_size * batch_size)
        if number == 0:
            run.train()
            run.session.end_epoch()
            run.seen.clear()
        run.train(steps)
        state = run.session.state_dict()
        processes.run_ranks(shared_stage, number, tmp_path, folder=tmp_path, world_size=world_size)
        found = [torch.load(tmp_path / f"{number}-{rank}.pt") for rank in range(world_size)]
        for step, (ids, weights) in enumerate(run.seen):
            told = {i: w for seen, _ in found for i, w in zip(*seen[step], strict=True)}
            padding = sum(len(seen[step][0]) for seen, _ in found) - len(ids)
            assert 0 <= padding < world_size if step == len(run.seen) - 1 and steps is None else padding == 0
            assert {i: told[i] for i in ids} == dict(zip(ids, weights, strict=True))
    assert run.session.open_epoch.positions_done == run.session.open_epoch.plan.length
    whole, parts = end_of(run), [end for _, end in found]
    steps, plan = whole.pop("steps"), whole.pop("plan")
    assert {part["steps"] for part in parts} == {steps}
    for name, values in whole.items():
        assert equal(values, torch.cat([part[name] for part in parts])), name
    for value, *shares in zip(plan, *(part["plan"] for part in parts), strict=True):
        assert torch.equal(torch.stack(shares, 1).flatten()[: len(value)], value)


def test_a_process_whose_others_are_gone_asks_them_nothing(monkeypatch):
    run = run_of(None, 5, SharedTable())
    run.train(2)
    for name in ("add_up", "gather", "exchange"):
        monkeypatch.delattr(Part, name)
    state = run.session.state_dict(alone=True)
    assert (state["open"], state["num_samples"]) == (False, LONG)


def test_a_digest_of_a_shared_order_tells_two_ids_apart_that_have_changed_places():
    order = torch.tensor([4, 1, 7], dtype=torch.int32)
    plans = [EpochPlan(0, ids, None, part=Part.whole(3), num_shared=3) for ids in (order, order[[1, 0, 2]])]
    assert len({shared_digest(plan) for plan in plans}) == 2
