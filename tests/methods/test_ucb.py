"""UCB: the recursion of mean and variance, and the bounds that a run chooses by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import UCB
from lightning_prune.functional import epsilon_greedy, ucb_update
from tests.cli_check import check_yaml
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.reference import periodic as reference
from tests.reference.golden import GOLDEN

NAN = math.nan


def run(losses, smoothing, mean=NAN, var=0.0):
    """Mean and variance of one sample after each loss."""
    mean, var = torch.tensor([mean], dtype=torch.float64), torch.tensor([var], dtype=torch.float64)
    for loss in losses:
        mean, var = ucb_update(mean, var, torch.tensor([loss], dtype=torch.float64), smoothing)
        yield mean.item(), var.item()


@pytest.mark.parametrize(("golden", "start"), [("zero_init", 0.0), ("first_obs_init", NAN)])
def test_golden_recursion(golden, start):
    case = GOLDEN["ucb"]
    for (mean, var), expected in zip(run(case["losses"], case["alpha"], start), case[golden], strict=True):
        assert [mean, var, mean + case["c"] * var] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=100)
@given(
    st.lists(st.floats(-100, 100) | st.sampled_from([NAN, math.inf, -math.inf]), min_size=1, max_size=12),
    st.sampled_from([0.1, 0.3, 0.9, 1.0]),
)
def test_update_against_the_loop(losses, smoothing):
    *_, (mean, var) = run(losses, smoothing)
    expected = reference.average(losses, smoothing)
    if expected[0] is None:
        assert math.isnan(mean)
        assert var == 0
    else:
        assert (mean, var) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_samples_are_updated_on_their_own_and_inputs_stay():
    mean, var = torch.tensor([1.0, NAN, 3.0, 4.0]), torch.tensor([0.5, 0.0, 0.0, 2.0])
    losses = torch.tensor([2.0, 5.0, NAN, 4.0])
    copies = [values.clone() for values in (mean, var, losses)]
    new_mean, new_var = ucb_update(mean, var, losses, 0.5)
    assert new_mean.tolist() == [1.5, 5.0, 3.0, 4.0]
    assert new_var.tolist() == [0.75, 0.0, 0.0, 1.0]
    for values, copy in zip((mean, var, losses), copies, strict=True):
        assert torch.equal(values.nan_to_num(-1), copy.nan_to_num(-1))


class Watch(UCB):
    """Notes the losses and the selection of each epoch."""

    def on_fit_start(self, trainer, pl_module):
        self.epochs = []

    def on_epoch_recorded(self, registry, record):
        super().on_epoch_recorded(registry, record)
        losses = dict(zip(record.indices.tolist(), record.losses.tolist(), strict=True))
        self.epochs.append((set(registry.selection.indices.tolist()), losses))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 500.0])
def test_fit(confidence):
    """Two warm-up epochs, then a choice in epochs 2, 4 and 6: the highest bounds of the losses until then."""
    method = Watch(0.4, confidence, every_n_epochs=2, smoothing=0.4, seed=0, warmup_epochs=2)
    trainer, model = make_trainer(method, max_epochs=7), Model()
    trainer.fit(model, make_loader())
    assert [len(kept) for kept, _ in method.epochs] == [40, 40, 24, 24, 24, 24, 24]
    for epoch in (2, 4, 6):
        bounds = {}
        for i in range(40):
            mean, var = reference.average([losses[i] for _, losses in method.epochs[:epoch] if i in losses], 0.4)
            bounds[i] = mean + confidence * var
        cut = sorted(bounds.values(), reverse=True)[23]
        assert all(bounds[i] >= cut * (1 - 1e-4) for i in method.epochs[epoch][0])
        assert all(bounds[i] <= cut * (1 + 1e-4) for i in set(range(40)) - method.epochs[epoch][0])
        if epoch < 6:
            assert method.epochs[epoch + 1][0] == method.epochs[epoch][0]
    expected = [reference.average([losses[i] for _, losses in method.epochs if i in losses], 0.4) for i in range(40)]
    registry = registry_of(trainer)
    assert registry.column("ucb_mean").tolist() == pytest.approx([m for m, _ in expected], rel=1e-5)
    assert registry.column("ucb_var").tolist() == pytest.approx([v for _, v in expected], rel=1e-4, abs=1e-7)


def test_zero_confidence_is_greedy_and_a_high_one_ranks_by_variance():
    mean, var = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([3.0, 0.0, 1.0, 2.0])
    for confidence, expected in ((0.0, [1, 2]), (1e6, [0, 3])):
        assert epsilon_greedy(mean + confidence * var, 2, 0.0).indices.tolist() == expected


def test_samples_without_a_loss_come_first():
    method = Watch(0.3, every_n_epochs=1, seed=0)
    make_trainer(method, max_epochs=2, limit_train_batches=5).fit(Model(), make_loader())
    assert set(range(40)) - set(method.epochs[0][1]) <= method.epochs[1][0]


def test_yaml(monkeypatch, tmp_path):
    check_yaml(monkeypatch, tmp_path, "UCB", {"prune_ratio": 0.5, "confidence": 2, "every_n_epochs": 2})


@pytest.mark.parametrize("n", [1, 3])
def test_tiny_datasets(n):
    model = Model()
    make_trainer(UCB(0.9, seed=0), max_epochs=3).fit(model, make_loader(n, batch_size=1))
    assert model.epoch_batches(3) == [n, 1, 1]


def test_ratio_zero_keeps_everything():
    model = Model()
    trainer = make_trainer(UCB(0.0, seed=0), max_epochs=3)
    trainer.fit(model, make_loader())
    assert model.epoch_batches(3) == [10] * 3
    assert registry_of(trainer).selection.weights is None


BAD = [
    ({"prune_ratio": -0.1}, r"`prune_ratio` to be a number in \[0, 1\), but got -0.1"),
    ({"confidence": -1.0}, "`confidence` to be a finite number >= 0, but got -1.0"),
    ({"confidence": math.inf}, "`confidence` to be a finite number >= 0, but got inf"),
    ({"every_n_epochs": 0}, "`every_n_epochs` to be an int >= 1, but got 0"),
    ({"smoothing": 1.5}, r"`smoothing` to be a number in \(0, 1\], but got 1.5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UCB(**arguments)


def test_bad_rule_input():
    ones = torch.ones(3)
    with pytest.raises(ValueError, match=r"`var` to have the shape of `losses`, \(3,\), but got \(2,\)"):
        ucb_update(ones, ones[:2], ones, 0.3)
    with pytest.raises(ValueError, match=r"`smoothing` to be a number in \(0, 1\]"):
        ucb_update(ones, ones, ones, 0.0)
    with pytest.raises(TypeError, match="`losses` to be a floating-point tensor"):
        ucb_update(ones, ones, ones.long(), 0.3)
