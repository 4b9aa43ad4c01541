"""The session as plain calls: the order of its calls, its state, and what it refuses."""

from __future__ import annotations

import io

import pytest
import torch

from lightning_prune.core.checkpoint import STATE_VERSION
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.method import Method
from lightning_prune.core.plan import Selection
from lightning_prune.core.step import StepRecord, weighted_loss
from tests.core.runs import BATCH_SIZE, NUM_SAMPLES, Hardest, Run, losses_of, make_session


def test_the_documented_calls_train_an_epoch():
    run = Run(Hardest())
    metrics = run.epoch()
    table = run.session.table
    visited = [i for _, ids, _ in run.seen for i in ids]
    assert sorted(visited) == list(range(NUM_SAMPLES))
    assert table.counts.tolist() == table.column("visits").tolist() == [1] * NUM_SAMPLES
    assert not table.losses.isnan().any()
    assert (table.epoch, run.session.running, run.session.step.running) == (1, None, None)
    assert metrics["prune/kept_fraction"] == 1
    assert metrics["prune/saved_fraction"] == 0
    assert metrics["prune/visits"] == NUM_SAMPLES
    assert metrics["prune/score_mean"] == pytest.approx(float(table.losses.mean()))


def test_losses_are_those_of_their_samples():
    run = Run()
    steps = run.steps()
    for _ in steps:
        running = run.session.open_epoch
        ids = run.seen[-1][1]
        assert running.step_indices.tolist() == ids
        assert run.session.step.indices.tolist() == ids
    run.session.end_epoch()
    weight, expected = torch.tensor(0.0), torch.zeros(NUM_SAMPLES)
    for _, ids, _ in run.seen:
        weight.requires_grad_()
        losses = losses_of(ids, weight)
        expected[ids] = losses.detach()
        weight = weight.detach() - 0.01 * torch.autograd.grad(losses.mean(), weight)[0]
    assert torch.equal(run.session.table.losses, expected)


def test_weights_are_the_plans():
    run = Run(Hardest())
    run.epoch()
    run.seen.clear()
    run.epoch()
    selection, plan = run.session.table.selection, run.session.table.plan
    assert [i for _, ids, _ in run.seen for i in ids] == plan.order.tolist()
    assert [w for _, _, weights in run.seen for w in weights] == plan.weights.tolist()
    of_id = dict(zip(selection.indices.tolist(), selection.weights.tolist(), strict=True))
    assert of_id == {i: 1 + i / 8 for i in of_id}
    assert all(weights == [of_id[i] for i in ids] for _, ids, weights in run.seen)


def test_a_method_that_weighs_is_given_ones_in_a_full_epoch():
    weighing, plain = Run(Hardest()), Run()
    for run in (weighing, plain):
        run.epoch()
    assert all(weights == [1.0] * len(ids) for _, ids, weights in weighing.seen)
    assert all(weights is None for _, _, weights in plain.seen)
    assert torch.equal(weighing.weight, plain.weight)


def test_ending_a_step_twice_changes_nothing():
    once, twice = Run(Hardest()), Run(Hardest())
    for run in (once, twice):
        for batch_idx in run.steps():
            if run is twice:
                log = run.session.open_epoch.log.clone()
                run.session.end_step(batch_idx)
                assert torch.equal(run.session.open_epoch.log, log)
                assert run.session.open_epoch.batches_done == batch_idx + 1
        run.session.end_epoch()
    assert torch.equal(once.session.table.losses, twice.session.table.losses)
    assert once.session.table.trained_steps == twice.session.table.trained_steps


def test_a_batch_without_a_step_is_visited_and_not_recorded():
    run = Run()
    session, skipped = run.session, [0, 3]
    session.begin_epoch()
    batches = list(session.batches)
    for batch_idx, ids in enumerate(batches):
        if batch_idx not in skipped:
            session.begin_step(batch_idx)
            session.step.record(losses_of(ids, 0.0), None, None, None, None, None)
        session.end_step(batch_idx)
        session.step.active = False
    assert session.open_epoch.batches_done == len(batches)
    session.end_epoch()
    unknown = sorted(i for batch_idx in skipped for i in batches[batch_idx])
    assert session.table.losses.isnan().nonzero().flatten().tolist() == unknown
    assert session.table.counts.tolist() == [1] * NUM_SAMPLES


class FirstTwo(Method):
    """Trains the first two samples of each batch."""

    picks_in_batch = True

    def pick(self, step, generator):
        return torch.arange(min(2, len(step.losses)))


def test_samples_left_out_of_their_batch_are_counted_once():
    session = Run(FirstTwo()).session
    session.begin_epoch()
    for batch_idx, ids in enumerate(session.batches):
        if batch_idx != 1:  # which no step is begun for
            session.begin_step(batch_idx)
            assert session.picks_now()
            probed = StepRecord()
            probed.record(losses_of(ids, 0.0), None, None, None, None, None)
            positions = session.pick(probed)
            assert session.step.indices.tolist() == ids[:2]
            weighted_loss(session.step, losses_of(ids, 0.0)[positions])
        for _ in range(2):
            session.end_step(batch_idx)
        session.step.active = False
    assert session.open_epoch.num_dropped == 8  # two of each full batch but the skipped one; the last has two
    metrics = session.end_epoch()
    assert session.table.trained_steps == NUM_SAMPLES - 8
    assert metrics["prune/kept_fraction"] == (NUM_SAMPLES - 8) / NUM_SAMPLES
    assert int(session.table.losses.isfinite().sum()) == 10


def test_a_probe_of_another_length_is_refused():
    session = Run(FirstTwo()).session
    session.begin_epoch()
    next(iter(session.batches))
    session.begin_step(0)
    probed = StepRecord()
    probed.record(torch.ones(3), None, None, None, None, None)
    with pytest.raises(ValueError, match="Expected 4 losses.*but got 3"):
        session.pick(probed)


def save(session):
    """Return the state after a file: plain tensors and numbers."""
    file = io.BytesIO()
    torch.save(session.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def interrupted(epoch, batches, **kwargs):
    """Train up to a place in an epoch; None: to its end. Return the run, and the state there."""
    run = Run(Hardest(**kwargs))
    for _ in range(epoch):
        run.epoch()
    if batches is None:
        run.epoch()
    else:
        for batch_idx in run.steps():
            if batch_idx + 1 == batches:
                break
    return run, save(run.session)


FULL, SHORT = -(-NUM_SAMPLES // BATCH_SIZE), 4
PLACES = [(0, None), (2, None), (0, 1), (0, 3), (1, 2), (2, 1), (2, 3), (0, FULL), (1, FULL), (2, SHORT)]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "epoch {}, batch {}".format(*place))
def test_a_restored_run_is_the_run_left_alone(place):
    """Between epochs, in the middle of one, and after its last batch; of full epochs, 0 and 1, and of pruned ones."""
    whole, (run, state) = Run(Hardest(warmup_epochs=2)), interrupted(*place, warmup_epochs=2)
    for _ in range(5):
        whole.epoch()
    resumed = Run(Hardest(warmup_epochs=2), state=state, weight=run.weight.item())
    assert (resumed.session.running is None) == (place[1] is None)
    while resumed.session.table.epoch < 5:
        resumed.epoch()
    assert resumed.seen == whole.seen[len(run.seen) :]
    assert run.seen == whole.seen[: len(run.seen)]
    assert torch.equal(resumed.weight, whole.weight)
    for name, values in whole.session.table.to_dict().items():
        assert torch.equal(values, resumed.session.table.to_dict()[name]), name
    table, again = whole.session.table, resumed.session.table
    assert (again.trained_steps, again.full_steps) == (table.trained_steps, table.full_steps)
    assert torch.equal(again.selection.weights, table.selection.weights)


def test_losses_of_samples_not_yet_visited_are_restored():
    """In an epoch of all samples the state holds each loss once: in the epoch's log, or beside it."""
    run, state = interrupted(1, 2, warmup_epochs=2)
    later = [i for ids in list(run.session.batches)[2:] for i in ids]
    table = Run(Hardest(warmup_epochs=2), state=state).session.table
    assert len(state["losses"]) == len(later) == NUM_SAMPLES - 2 * BATCH_SIZE
    assert torch.equal(table.losses[later], run.session.table.losses[later])


def test_a_restored_epoch_knows_how_long_a_full_one_is():
    """A limit on the batches is the caller's; the epoch that it was set for goes on with it."""
    run = Run(Hardest())
    run.session.full_batches = 3
    next(run.steps())
    assert Run(Hardest(), state=save(run.session)).session.full_batches == 3


def test_a_state_without_the_methods_columns_is_given_them():
    run = Run()
    run.epoch()
    resumed = Run(Hardest(), state=save(run.session))
    resumed.epoch()
    assert int(resumed.session.table.column("visits").sum()) == len(resumed.session.table.selection)


def test_saving_changes_nothing():
    run, state = interrupted(2, 2)
    again = save(run.session)
    for name, value in state.items():
        if name not in ("ranks", "columns", "state"):
            assert torch.equal(value, again[name]) if isinstance(value, torch.Tensor) else value == again[name], name


def test_global_generators_are_restored_once_and_only_when_asked():
    _, state = interrupted(2, 2)
    expected = torch.rand(2).tolist()
    run = Run(Hardest(), state=state)
    assert torch.rand(2).tolist() != expected
    run.session.restore_rng()
    assert torch.rand(2).tolist() == expected
    run.session.restore_rng()
    assert torch.rand(2).tolist() != expected


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_samples": NUM_SAMPLES + 1}, f"dataset of {NUM_SAMPLES} samples.*but got {NUM_SAMPLES + 1}"),
        ({"method": Hardest(0.4)}, "derive the selection of epoch 2.*but got another one"),
        ({"method": Hardest(seed=5)}, "derive the selection of epoch 2.*but got another one"),
    ],
    ids=["length", "arguments", "seed"],
)
def test_another_run_is_refused_in_mid_epoch(change, match):
    _, state = interrupted(2, 2)
    method = change.pop("method", Hardest())
    with pytest.raises(StateMismatchError, match=match):
        Run(method, state=state, seed=method.resolved_seed, **change)


def test_between_epochs_only_another_length_is_refused():
    _, state = interrupted(2, None)
    for run in (Run(Hardest(), state=state, batch_size=5), Run(Hardest(0.4), state=state)):
        run.epoch()
    with pytest.raises(StateMismatchError, match="or start a new run"):
        Run(Hardest(), state=state, num_samples=NUM_SAMPLES - 1)


def test_a_newer_state_is_refused():
    _, state = interrupted(0, None)
    with pytest.raises(StateMismatchError, match=f"version <= {STATE_VERSION}, but the checkpoint has 99.*upgrade"):
        Run(Hardest(), state=state | {"version": 99})


def test_another_dataset_of_the_same_length_is_warned_of():
    _, state = interrupted(0, None)
    session = make_session(Hardest())
    session.dataset = ["Other", "v2"]
    with pytest.warns(UserWarning, match=r"belongs to the dataset \[None, None\].*resumed with \['Other', 'v2'\]"):
        session.restore(state, NUM_SAMPLES, "cpu")


def test_the_seed_of_the_state_is_taken_unless_the_method_has_one():
    run = Run(Hardest(), seed=7)
    run.epoch()
    state = save(run.session)
    resumed = Run(Hardest(), state=state, seed=1)
    assert (resumed.session.seed, resumed.session.batches.sampler.seed) == (7, 7)
    own = Run(Hardest(seed=1), state=state, seed=1)
    assert (own.session.seed, own.session.batches.sampler.seed) == (1, 1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_select_the_same_and_share_the_plan(world_size, monkeypatch):
    """Each rank a session in this process; the epoch's one collective is given all their logs."""
    runs = [Run(Hardest(), rank=rank, world_size=world_size) for rank in range(world_size)]
    logs = []
    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", lambda output, own: output.copy_(torch.cat(logs)))
    for epoch in range(3):
        plans = [run.session.begin_epoch().plan for run in runs]
        assert all(torch.equal(plan.order, plans[0].order) for plan in plans)
        assert all(torch.equal(run.session.table.selected, runs[0].session.table.selected) for run in runs)
        for run in runs:
            assert list(run.steps()) == list(range(len(run.session.batches)))
        visited = [[i for e, ids, _ in run.seen if e == epoch for i in ids] for run in runs]
        order = plans[0].order.tolist()
        together = [i for step in zip(*visited, strict=True) for i in step]
        assert together == (order * 2)[: len(together)]  # the padding wraps around
        assert len(order) <= len(together) < len(order) + world_size
        logs[:] = [run.session.open_epoch.log[:, :-1].flatten() for run in runs]
        for run in runs:
            run.session.end_epoch()
        for run in runs[1:]:
            for name, values in runs[0].session.table.to_dict().items():
                assert torch.equal(values, run.session.table.to_dict()[name]), name


def test_what_is_no_selection_is_refused():
    class Wrong(Hardest):
        def select(self, registry, epoch, generator):
            return [1, 2]

    run = Run(Wrong(warmup_epochs=0))
    with pytest.raises(TypeError, match="`Wrong.select` to return a Selection, but got list"):
        run.session.begin_epoch()


def test_a_full_selection_of_ones_is_unweighted():
    class Ones(Hardest):
        def select(self, registry, epoch, generator):
            return Selection(torch.arange(registry.num_samples), torch.ones(registry.num_samples))

    run = Run(Ones(warmup_epochs=0))
    assert run.session.begin_epoch().plan.weights is None


def test_calls_out_of_order_say_what_is_missing():
    session = Run().session
    with pytest.raises(RuntimeError, match="an epoch to be running, but none is"):
        session.begin_step(0)
    with pytest.raises(RuntimeError, match="an epoch to be running, but none is"):
        session.end_epoch()
    assert not session.picks_now()


def test_losses_that_are_not_finite_are_kept_counted_and_warned_of():
    run = Run()
    session = run.session
    session.begin_epoch()
    for batch_idx, ids in enumerate(session.batches):
        session.begin_step(batch_idx)
        losses = losses_of(ids, 0.0).where(torch.tensor(ids) % 10 != 3, torch.nan)
        session.step.record(losses, None, None, None, None, None)
        session.end_step(batch_idx)
    with pytest.warns(UserWarning, match=r"2 of 22 losses were NaN or infinite in epoch 0"):
        metrics = session.end_epoch()
    assert metrics["prune/nonfinite"] == 2
    assert session.table.losses.isnan().nonzero().flatten().tolist() == [3, 13]
