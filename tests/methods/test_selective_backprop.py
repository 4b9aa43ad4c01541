"""Selective-Backprop: the published probabilities and schedule, the law of the draw, and runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_prune import SelectiveBackprop
from lightning_prune.cli import main
from lightning_prune.core.plan import num_keep
from lightning_prune.core.step import StepRecord
from lightning_prune.functional import selective_backprop_probs
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.reference.golden import GOLDEN


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pick(method, losses, source):
    step = StepRecord()
    step.losses = torch.as_tensor(losses)
    return method.pick(step, source).tolist()


@pytest.mark.parametrize("case", GOLDEN["selective_backprop"]["probs"])
def test_golden_probabilities(case):
    size, keep = (part.split("=")[1] for part in case.split(","))
    expected = GOLDEN["selective_backprop"]["probs"][case]
    assert selective_backprop_probs(int(size), float(keep)).tolist() == pytest.approx(expected, rel=1e-12)


class Progress:
    def __init__(self, progress):
        self.progress = progress


@pytest.mark.parametrize("case", GOLDEN["selective_backprop"]["schedule"], ids=str)
def test_golden_schedule(case):
    method = SelectiveBackprop(start=0.5, end=0.9, interrupt=case["interrupt"])
    fires = [i for i in range(8) if method.picks_now(Progress(case["duration"]), 0, i)]
    assert fires == case["fires_at_batch_idx"]


@settings(max_examples=60)
@given(st.integers(1, 300), st.floats(0.01, 1.0))
def test_probabilities_rise_with_the_loss(size, keep):
    probs = selective_backprop_probs(size, keep)
    assert probs.sum().item() == pytest.approx(1)
    assert (probs.diff() >= 0).all()
    assert (probs > 0).all() or keep < 0.05


def test_law_of_the_draw():
    """As NumPy's draws without replacement, 5 of 12, by rank: two samples of 20,000 draws, z <= 5."""
    n, ratio, draws = 12, 0.6, 20_000
    losses = np.random.default_rng(0).permutation(n).astype(np.float32)
    method, source = SelectiveBackprop(prune_ratio=ratio), generator()
    ours, theirs, rng = np.zeros(n), np.zeros(n), np.random.default_rng(1)
    probs = np.empty(n)
    probs[losses.argsort()] = selective_backprop_probs(n, 1 - ratio).numpy()
    k = num_keep(n, 1 - ratio)
    for _ in range(draws):
        picked = pick(method, losses, source)
        assert len(set(picked)) == k == 4
        ours[picked] += 1
        theirs[rng.choice(n, k, replace=False, p=probs)] += 1
    pooled = (ours + theirs) / (2 * draws)
    z = (ours - theirs) / draws / np.sqrt(2 * pooled * (1 - pooled) / draws)
    assert np.abs(z).max() <= 5
    assert (np.diff(ours[losses.argsort()]) > -5 * math.sqrt(draws)).all()


def test_ties_are_drawn_alike():
    """All losses equal: each of 8 samples is drawn with 1/2; 4,000 draws, z <= 5."""
    counts, source = torch.zeros(8), generator()
    for _ in range(4000):
        counts[pick(SelectiveBackprop(0.5), torch.ones(8), source)] += 1
    assert (counts / 4000 - 0.5).abs().max() <= 5 * math.sqrt(0.25 / 4000)


@pytest.mark.parametrize("losses", [[1.0], [math.nan, 1.0, math.inf], [math.nan] * 4])
def test_small_and_broken_batches(losses):
    picked = pick(SelectiveBackprop(0.9), losses, generator())
    assert len(picked) == 1
    assert 0 <= picked[0] < len(losses)


def test_run():
    """Active in epochs 2 to 4 of 6, in every second batch, and drawn afresh: hard samples are trained more often."""
    model, method = Model(), SelectiveBackprop(prune_ratio=0.5, start=0.3, end=0.8)
    trainer = make_trainer(method, max_epochs=6)
    trainer.fit(model, make_loader())
    lengths = {e: sorted(len(ids) for epoch, ids in model.seen if epoch == e) for e in range(6)}
    assert lengths[0] == lengths[1] == lengths[5] == [4] * 10
    assert lengths[2] == lengths[3] == lengths[4] == [2] * 5 + [4] * 5
    assert registry_of(trainer).saved_fraction == pytest.approx(3 * 10 / 240)


def test_run_by_steps():
    model = Model()
    trainer = make_trainer(SelectiveBackprop(start=0.5, end=1.0, interrupt=0), max_epochs=-1, max_steps=20)
    trainer.fit(model, make_loader())
    assert [len(ids) for _, ids in model.seen] == [4] * 10 + [2] * 10


def test_endless_runs_are_refused():
    with pytest.raises(MisconfigurationException, match="max_steps"):
        make_trainer(SelectiveBackprop(), max_epochs=-1).fit(Model(), make_loader())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"prune_ratio": 1.0},
        {"prune_ratio": -0.1},
        {"start": 1.5},
        {"end": -1},
        {"start": 0.9, "end": 0.1},
        {"interrupt": -1},
    ],
)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=r"Expected `"):
        SelectiveBackprop(**kwargs)


@pytest.mark.parametrize("args", [(0, 0.5), (4, 0.0), (4, 1.1)])
def test_bad_inputs(args):
    with pytest.raises(ValueError, match="Expected"):
        selective_backprop_probs(*args)


@pytest.mark.filterwarnings("ignore")
def test_from_yaml(tmp_path, monkeypatch):
    from tests.test_cli import CONFIG, ROOT

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "method.yaml").write_text(
        "trainer:\n  callbacks:\n    class_path: SelectiveBackprop\n    init_args: {start: 0.0}\n"
    )
    main(["fit", "--config", CONFIG, "--config", "method.yaml", "--trainer.fast_dev_run=true"])
