"""Every tracker keeps the contract that ships with the package; what it does not cover."""

from __future__ import annotations

import pytest
import torch

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
from lightning_prune.testing import TrackerContract

N, C, D, EPOCHS = 30, 4, 3, 12

CASES = {
    "TDDS": lambda n=None: TDDS(n, C, window=5),
    "TDDS-float32": lambda n=None: TDDS(n, C, window=5, precision="float32"),
    "Forgetting": Forgetting,
    "EL2N": lambda n=None: EL2N(n, num_epochs=8),
    "GraNd": GraNd,
    "AUM": AUM,
    "AUM-logit": lambda n=None: AUM(n, space="logit"),
    "Entropy": Entropy,
    "LeastConfidence": LeastConfidence,
    "Margin": Margin,
    "SmallLoss": SmallLoss,
    "DynUnc": lambda n=None: DynUnc(n, window=5),
    "DynUnc-drop": lambda n=None: DynUnc(n, window=5, drop_last_window=True),
    "DUAL": lambda n=None: DUAL(n, window=5, num_epochs=10),
}
trackers = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())

_generator = torch.Generator().manual_seed(7)
LOGITS = torch.randn(EPOCHS, N, C, generator=_generator) * 3
TARGETS = torch.randint(C, (N,), generator=_generator)
FEATURES = torch.randn(EPOCHS, N, D, generator=_generator)
LOSSES = torch.rand(EPOCHS, N, generator=_generator)

for _name, _make in CASES.items():
    _class = f"Test{_name.title().replace('-', '')}"
    globals()[_class] = type(_class, (TrackerContract,), {"tracker": staticmethod(_make)})


def visit(tracker, epoch, ids):
    tracker.update(
        ids,
        losses=LOSSES[epoch][ids],
        logits=LOGITS[epoch][ids],
        targets=TARGETS[ids],
        features=FEATURES[epoch][ids],
    )


def run(tracker):
    """Train in a fresh order each epoch; return the scores."""
    generator = torch.Generator().manual_seed(7)
    for epoch in range(EPOCHS):
        for ids in torch.split(torch.randperm(N, generator=generator), 7):
            visit(tracker, epoch, ids)
        tracker.end_epoch()
    return tracker.compute()


def test_every_tracker_has_a_case():
    assert {name.partition("-")[0] for name in CASES} == set(TRACKERS)


@trackers
def test_low_precision_inputs_score_alike(make):
    tracker = make(N)
    for epoch in range(EPOCHS):
        values = {"losses": LOSSES, "logits": LOGITS, "features": FEATURES}
        tracker.update(
            torch.arange(N), targets=TARGETS.int(), **{name: v[epoch].bfloat16() for name, v in values.items()}
        )
        tracker.end_epoch()
    scores, expected = tracker.compute(), run(make(N))
    finite = expected.isfinite() & scores.isfinite()  # one more forgetting event may flip an argmax
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
    with pytest.raises(ValueError, match="with method='AUM', but the checkpoint has 'EL2N'"):
        AUM(N).load_state_dict(state)
    with pytest.raises(ValueError, match="with parameters"):
        EL2N(N, num_epochs=3).load_state_dict(state)
    with pytest.raises(ValueError, match="with num_samples=9, but the checkpoint has 30"):
        EL2N(9).load_state_dict(state)
    with pytest.raises(ValueError, match="version <= 1, but got 2"):
        EL2N(N).load_state_dict({**state, "version": 2})


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
