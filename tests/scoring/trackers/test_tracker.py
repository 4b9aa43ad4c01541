"""What every tracker must do, whatever it scores."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.scoring import (
    AUM,
    DUAL,
    EL2N,
    TDDS,
    DynUnc,
    Entropy,
    Forgetting,
    GraNd,
    LeastConfidence,
    Margin,
    SmallLoss,
    Tracker,
)
from lightning_prune.scoring.recorder import TRACKERS
from lightning_prune.scoring.trackers.tracker import first_occurrence

N, C, D, EPOCHS = 30, 4, 3, 12

CASES = {
    "TDDS": lambda n=N: TDDS(n, C, window=5),
    "TDDS-float32": lambda n=N: TDDS(n, C, window=5, precision="float32"),
    "Forgetting": Forgetting,
    "EL2N": lambda n=N: EL2N(n, num_epochs=8),
    "GraNd": GraNd,
    "AUM": AUM,
    "AUM-logit": lambda n=N: AUM(n, space="logit"),
    "Entropy": Entropy,
    "LeastConfidence": LeastConfidence,
    "Margin": Margin,
    "SmallLoss": SmallLoss,
    "DynUnc": lambda n=N: DynUnc(n, window=5),
    "DynUnc-drop": lambda n=N: DynUnc(n, window=5, drop_last_window=True),
    "DUAL": lambda n=N: DUAL(n, window=5, num_epochs=10),
}
trackers = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())

_generator = torch.Generator().manual_seed(7)
LOGITS = torch.randn(EPOCHS, N, C, generator=_generator) * 3
TARGETS = torch.randint(C, (N,), generator=_generator)
FEATURES = torch.randn(EPOCHS, N, D, generator=_generator)
LOSSES = torch.rand(EPOCHS, N, generator=_generator)


def visit(tracker, epoch, ids):
    tracker.update(
        ids,
        losses=LOSSES[epoch][ids],
        logits=LOGITS[epoch][ids],
        targets=TARGETS[ids],
        features=FEATURES[epoch][ids],
    )


def run(tracker, batch_size=7, *, extra=lambda epoch, ids: ids, skip=()):
    """Train in a fresh order each epoch; ``extra`` changes batches, ``skip`` has the visits (epoch, id) missed."""
    generator = torch.Generator().manual_seed(batch_size)
    for epoch in range(EPOCHS):
        order = [i for i in torch.randperm(N, generator=generator).tolist() if (epoch, i) not in skip]
        for ids in torch.split(torch.tensor(order), batch_size):
            visit(tracker, epoch, extra(epoch, ids))
        tracker.end_epoch()
    return tracker.compute()


def test_every_tracker_has_a_case():
    assert {name.partition("-")[0] for name in CASES} == set(TRACKERS)


@trackers
def test_scores_are_float32_by_sample(make):
    tracker = make(N)
    scores = run(tracker)
    assert scores.shape == (N,)
    assert scores.dtype == torch.float32
    assert tracker.keep in {"high", "low"}
    assert not scores.isnan().any()


@trackers
@pytest.mark.parametrize("batch_size", [1, 16, N])
def test_batch_size_and_order_do_not_matter(make, batch_size):
    torch.testing.assert_close(run(make(N), batch_size), run(make(N)), rtol=1e-6, atol=1e-6)


@trackers
def test_a_sample_counts_once_per_epoch(make):
    def padded(epoch, ids):
        return torch.cat([ids, ids[:2], ids[:1]])

    expected = run(make(N))
    assert torch.equal(run(make(N), extra=padded), expected)
    tracker = make(N)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(EPOCHS):
        for ids in torch.split(torch.randperm(N, generator=generator), 7):
            visit(tracker, epoch, ids)
            visit(tracker, (epoch + 1) % EPOCHS, ids[:2])  # again, with what they would show in another epoch
        tracker.end_epoch()
    assert torch.equal(tracker.compute(), expected)


@trackers
def test_the_first_of_two_copies_in_a_batch_counts(make):
    single, double = make(N), make(N)
    for epoch in range(EPOCHS):
        ids = torch.arange(N)
        visit(single, epoch, ids)
        other = (epoch + 1) % EPOCHS
        pair = {
            "losses": torch.cat([LOSSES[epoch], LOSSES[other]]),
            "logits": torch.cat([LOGITS[epoch], LOGITS[other]]),
            "targets": TARGETS.repeat(2),
            "features": torch.cat([FEATURES[epoch], FEATURES[other]]),
        }
        double.update(ids.repeat(2), **pair)
        single.end_epoch()
        double.end_epoch()
    assert torch.equal(single.compute(), double.compute())


@trackers
def test_permuting_ids_permutes_scores(make):
    permutation = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    plain, permuted = make(N), make(N)
    for epoch in range(EPOCHS):
        visit(plain, epoch, torch.arange(N))
        permuted.update(
            permutation,
            losses=LOSSES[epoch],
            logits=LOGITS[epoch],
            targets=TARGETS,
            features=FEATURES[epoch],
        )
        plain.end_epoch()
        permuted.end_epoch()
    assert torch.equal(permuted.compute()[permutation], plain.compute())


@trackers
def test_missing_samples_are_not_invented(make):
    absent = {(epoch, 3) for epoch in range(EPOCHS)}
    scores = run(make(N), skip=absent)
    assert scores[3].isnan()
    assert scores.isnan().sum() == 1


@trackers
def test_nan_visits_are_no_visits(make):
    expected = run(make(N), skip={(2, 5)})
    tracker = make(N)
    for epoch in range(EPOCHS):
        inputs = {"losses": LOSSES, "logits": LOGITS, "features": FEATURES}
        inputs = {name: values[epoch].clone() for name, values in inputs.items()}
        if epoch == 2:
            for values in inputs.values():
                values[5] = torch.nan
        tracker.update(torch.arange(N), targets=TARGETS, **inputs)
        tracker.end_epoch()
    torch.testing.assert_close(tracker.compute(), expected, rtol=1e-6, atol=1e-6)


@trackers
def test_state_round_trip_in_the_middle_of_an_epoch(make):
    expected = run(make(N))
    first, second = make(N), make(None)
    generator = torch.Generator().manual_seed(7)
    tracker = first
    for epoch in range(EPOCHS):
        for step, ids in enumerate(torch.split(torch.randperm(N, generator=generator), 7)):
            visit(tracker, epoch, ids)
            if (epoch, step) == (6, 2):
                second.load_state_dict(first.state_dict())
                tracker = second
                visit(tracker, 0, ids[:3])  # a padded copy right after the restart
        tracker.end_epoch()
    assert torch.equal(second.compute(), expected)


@trackers
def test_state_dict_is_plain(make, tmp_path):
    tracker = make(N)
    run(tracker)
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    loaded = make(N)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(loaded.compute(), tracker.compute())


@trackers
def test_low_precision_inputs_are_scored_in_float32(make):
    tracker = make(N)
    for epoch in range(EPOCHS):
        values = {"losses": LOSSES, "logits": LOGITS, "features": FEATURES}
        tracker.update(
            torch.arange(N), targets=TARGETS.int(), **{name: v[epoch].bfloat16() for name, v in values.items()}
        )
        tracker.end_epoch()
    scores, expected = tracker.compute(), run(make(N))
    finite = expected.isfinite() & scores.isfinite()  # one more forgetting event may flip an argmax
    assert scores.dtype == torch.float32
    assert torch.corrcoef(torch.stack([scores[finite], expected[finite]]))[0, 1] > 0.9


J = K = 5
BYTES = {  # by tracker: what the state takes, and the most that it may
    "TDDS": (2 * C + 4 * (K - 2) + 4, 2 * C + 4 * (K - 1) + 4),
    "TDDS-float32": (4 * C + 4 * (K - 2) + 4, 4 * C + 4 * (K - 1) + 4),
    "Forgetting": (3, 3),
    "EL2N": (6, 6),
    "GraNd": (6, 6),
    "AUM": (4, 4),
    "AUM-logit": (4, 4),
    "Entropy": (4, 4),
    "LeastConfidence": (4, 4),
    "Margin": (4, 4),
    "SmallLoss": (4, 4),
    "DynUnc": (4 * (J - 1) + 4 + 2, 4 * J + 4),
    "DynUnc-drop": (4 * (J - 1) + 8 + 2, 4 * J + 8),
    "DUAL": (4 * (J - 1) + 8 + 2, 4 * J + 8),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_per_sample(name):
    n = 3000
    tracker = CASES[name](n)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        tracker.update(
            torch.arange(n),
            losses=torch.rand(n, generator=generator),
            logits=torch.randn(n, C, generator=generator),
            targets=torch.randint(C, (n,), generator=generator),
            features=torch.randn(n, D, generator=generator),
        )
        during = tracker.state_dict()
        tracker.end_epoch()
    exact, most = BYTES[name]
    state = tracker.state_dict()
    assert sum(values.numel() * values.element_size() for values in state["state"].values()) == exact * n <= most * n
    assert state["seen"] is None
    assert during["seen"].element_size() == 1  # who was visited: only during an epoch


@trackers
def test_inputs_are_not_changed(make):
    tracker = make(N)
    before = LOGITS.clone(), LOSSES.clone(), FEATURES.clone()
    run(tracker)
    scores = tracker.compute()
    copy = scores.clone()
    scores.zero_()
    assert torch.equal(tracker.compute(), copy)
    assert all(torch.equal(a, b) for a, b in zip(before, (LOGITS, LOSSES, FEATURES), strict=True))


@trackers
def test_missing_input(make):
    tracker = make(N)
    given = {"losses": LOSSES[0], "logits": LOGITS[0], "targets": TARGETS, "features": FEATURES[0]}
    for name in tracker.needs:
        rest = {other: value for other, value in given.items() if other != name}
        with pytest.raises(ValueError, match=rf"Expected `{name}` for .*but got None. Pass .*{name}=\.\.\."):
            tracker.update(torch.arange(N), **rest)


@trackers
def test_nothing_recorded(make):
    with pytest.raises(ValueError, match="Expected at least .* recorded epochs"):
        make(N).compute()


@trackers
def test_an_empty_batch_is_nothing(make):
    tracker = make(N)
    tracker.update(
        torch.zeros(0, dtype=torch.int64),
        losses=torch.zeros(0),
        logits=torch.zeros(0, C),
        targets=torch.zeros(0, dtype=torch.int64),
        features=torch.zeros(0, D),
    )
    assert not tracker.state


class NoSync(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU: reading a value, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}
        if func.overloadpacket.__name__ in {"index", "index_put", "index_put_"}:
            assert all(index is None or index.dtype == torch.int64 for index in args[1])
        return func(*args, **(kwargs or {}))


@trackers
def test_updates_never_wait_for_the_device(make):
    tracker = make(N)
    with NoSync():
        for epoch in range(EPOCHS):
            for ids in torch.split(torch.arange(N), 7):
                visit(tracker, epoch, ids)
            tracker.end_epoch()


def test_one_sample_two_classes():
    tracker = TDDS(1, 2, window=3)
    for epoch in range(4):
        tracker.update(torch.tensor([0]), logits=torch.tensor([[float(epoch), 0.0]]))
        tracker.end_epoch()
    assert tracker.compute().shape == (1,)


def test_soft_targets_are_refused():
    soft = torch.full((N, C), 1 / C)
    with pytest.raises(ValueError, match="Mixed targets"):
        EL2N(N).update(torch.arange(N), logits=LOGITS[0], targets=soft)
    with pytest.raises(ValueError, match="Mixed targets"):
        EL2N(N).update(torch.arange(N), logits=LOGITS[0], targets=TARGETS.float())


def test_shapes_and_types():
    tracker, ids = EL2N(N), torch.arange(N)
    with pytest.raises(ValueError, match="d >= 2"):
        tracker.update(ids, logits=LOGITS[0][:, :1], targets=TARGETS)
    with pytest.raises(ValueError, match="`logits` to have shape"):
        tracker.update(ids, logits=LOGITS[0][:-1], targets=TARGETS)
    with pytest.raises(TypeError, match="`logits` to be a floating-point tensor"):
        tracker.update(ids, logits=LOGITS[0].long(), targets=TARGETS)
    with pytest.raises(TypeError, match="`targets` to be a tensor"):
        tracker.update(ids, logits=LOGITS[0], targets=[0] * N)
    with pytest.raises(TypeError, match="`indices` to be an int64 tensor"):
        tracker.update(ids.int(), logits=LOGITS[0], targets=TARGETS)
    with pytest.raises(TypeError, match="`indices` to be an int64 tensor"):
        tracker.update([0], logits=LOGITS[0][:1], targets=TARGETS[:1])
    with pytest.raises(ValueError, match="`losses` to have shape"):
        SmallLoss(N).update(ids, losses=LOSSES[0][:, None])
    with pytest.raises(ValueError, match="`num_samples` to be set"):
        EL2N().update(ids, logits=LOGITS[0], targets=TARGETS)


@pytest.mark.parametrize("bad", [0, -1])
def test_num_samples_range(bad):
    with pytest.raises(ValueError, match="`num_samples` to be an int >= 1"):
        EL2N(bad)


def test_foreign_state_is_refused():
    tracker = EL2N(N)
    run(tracker)
    state = tracker.state_dict()
    with pytest.raises(ValueError, match="with method 'AUM', but got 'EL2N'"):
        AUM(N).load_state_dict(state)
    with pytest.raises(ValueError, match="with parameters"):
        EL2N(N, num_epochs=3).load_state_dict(state)
    with pytest.raises(ValueError, match="with num_samples 9, but got 30"):
        EL2N(9).load_state_dict(state)
    with pytest.raises(ValueError, match="version <= 1, but got 2"):
        EL2N(N).load_state_dict({**state, "version": 2})


def test_reset_forgets():
    tracker = DUAL(N, window=5)
    run(tracker)
    tracker.reset()
    assert tracker.epoch == 0
    assert not tracker.state


def test_first_occurrence():
    ids = torch.randint(9, (200,), generator=torch.Generator().manual_seed(0))
    expected = [ids.tolist().index(i) for i in ids.tolist()]
    assert first_occurrence(ids).tolist() == expected


def test_a_tracker_of_ones_own():
    class MaxLoss(Tracker):
        """Largest loss ever seen."""

        needs = ("losses",)

        def __init__(self, num_samples=None):
            super().__init__(num_samples)

        def measure(self, batch):
            return batch.losses

        def fold(self, old, values):
            return {"value": torch.fmax(old["value"], values)}

    assert torch.equal(run(MaxLoss(N)), LOSSES.amax(0))


@trackers
def test_the_global_generator_is_left_alone(make):
    before = torch.get_rng_state()
    run(make(N))
    assert torch.equal(torch.get_rng_state(), before)
