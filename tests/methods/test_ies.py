"""IES: the published criterion, and runs in which skipped samples are refreshed and return."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import IES, WeightedLossMixin
from lightning_prune.functional import instance_early_stopping
from tests.helpers import Model, PlainModel, make_loader, make_trainer, registry_of
from tests.reference.golden import GOLDEN


@pytest.mark.parametrize("case", GOLDEN["ies"]["cases"], ids=lambda case: str(case["threshold"]))
def test_golden_traces(case):
    losses = torch.tensor(case["losses"], dtype=torch.float64)
    for step in case["trace"]:
        history = losses[None, : step["epoch"] + 1]
        assert instance_early_stopping(history, case["threshold"]).item() is step["excluded_next_epoch"]
        if step["value"] is not None and step["value"] > 1e-12:
            assert not instance_early_stopping(history, step["value"] * (1 - 1e-9)).item()
            assert instance_early_stopping(history, step["value"] * (1 + 1e-9)).item()


def mastered(history, threshold, m):
    """The criterion as a sentence."""
    if len(history) < m + 3 or not all(math.isfinite(x) for x in history[-m - 3 :]):
        return False
    x = np.float64(history[-m - 2 :])
    return bool(np.abs(x[2:] - 2 * x[1:-1] + x[:-2]).mean() < threshold)


@settings(max_examples=100)
@given(st.data(), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.1, 1.0]))
def test_against_the_loop(data, length, m, threshold):
    values = st.sampled_from([0.0, 0.5, 1.0, 1.25, math.nan, math.inf])
    history = data.draw(st.lists(st.lists(values, min_size=length, max_size=length), min_size=1, max_size=5))
    tensor = torch.tensor(history, dtype=torch.float64)
    copy = tensor.clone()
    assert instance_early_stopping(tensor, threshold, m).tolist() == [mastered(row, threshold, m) for row in history]
    assert torch.equal(tensor.nan_to_num(9), copy.nan_to_num(9))


@pytest.mark.parametrize(
    "args",
    [
        (torch.zeros(3), 0.1, 3),
        (torch.zeros(3, 6), -0.1, 3),
        (torch.zeros(3, 6), math.nan, 3),
        (torch.zeros(3, 6), 1, 0),
    ],
)
def test_bad_inputs(args):
    with pytest.raises(ValueError, match="Expected"):
        instance_early_stopping(*args)


class Noted(IES):
    """Notes every epoch's complete row of losses and its selection."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows, self.kept = [], []

    def select(self, registry, epoch, generator):
        selection = super().select(registry, epoch, generator)
        self.kept.append(set(selection.indices.tolist()))
        return selection

    def on_epoch_recorded(self, registry, record):
        super().on_epoch_recorded(registry, record)
        self.rows.append(registry.losses.clone())


class WithDropout(WeightedLossMixin, PlainModel):
    """Notes which samples a pass in eval mode saw."""

    def __init__(self):
        super().__init__(dropout=0.3)
        self.trained, self.refreshed = {}, {}

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        losses = F.cross_entropy(self.layer(self.dropout(x)), y, reduction="none")
        into = self.trained if self.training else self.refreshed
        into.setdefault(self.current_epoch, []).extend(index.tolist())
        return self.weighted_loss(losses)


@pytest.mark.parametrize("workers", [0, 2])
def test_run_follows_the_criterion_and_refreshes_what_it_skips(workers):
    method, model = Noted(threshold=0.02, moving_average=2), WithDropout()
    trainer = make_trainer(method, max_epochs=14)
    trainer.fit(model, make_loader(num_workers=workers, persistent_workers=workers > 0))
    rows = torch.stack(method.rows, 1)
    assert rows.isfinite().all()
    for epoch in range(14):
        history = rows[:, :epoch].tolist()
        expected = {i for i in range(40) if not mastered(history[i], 0.02, 2)}
        assert method.kept[epoch] == expected
        assert sorted(model.trained[epoch]) == sorted(expected)
        assert sorted(model.refreshed.get(epoch, [])) == sorted(set(range(40)) - expected)
    skipped = [set(range(40)) - kept for kept in method.kept]
    assert any(skipped)
    assert any(before & after for before, after in zip(skipped, method.kept[1:], strict=False))  # some return
    assert registry_of(trainer).saved_fraction > 0


def test_threshold_zero_skips_nothing():
    models = Model(), Model()
    for model, callbacks in zip(models, ([IES(threshold=0)], [IES(threshold=0, warmup_epochs=99)]), strict=True):
        torch.manual_seed(0)
        make_trainer(*callbacks, max_epochs=8).fit(model, make_loader())
    assert models[0].seen == models[1].seen


def test_when_all_is_mastered_the_hardest_sample_stays():
    method = Noted(threshold=1e9, moving_average=1)
    make_trainer(method, max_epochs=7).fit(Model(), make_loader())
    assert [len(kept) for kept in method.kept] == [40] * 4 + [1] * 3
    for epoch in (4, 5, 6):
        assert method.kept[epoch] == {int(method.rows[epoch - 1].argmax())}


def test_nonfinite_losses_are_never_mastered():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = PlainModel.losses(self, batch)
            return self.weighted_loss(torch.where(batch[2] == 7, torch.full_like(losses, torch.nan).detach(), losses))

    method = Noted(threshold=1e9, moving_average=1)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        make_trainer(method, max_epochs=6).fit(Broken(), make_loader())
    assert all(7 in kept for kept in method.kept)


def test_a_hook_gives_the_losses():
    class Hook(Model):
        asked = 0

        def per_sample_loss(self, batch):
            type(self).asked += 1
            x, y, _ = batch
            return F.cross_entropy(self.layer(x), y, reduction="none")

    make_trainer(IES(threshold=1e9, moving_average=1), max_epochs=5).fit(Hook(), make_loader())
    assert Hook.asked == 10  # 39 skipped samples in batches of 4, once


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (60.0, False)])
def test_a_bar_appears_when_refreshing_takes_long(patience, shown, monkeypatch, capfd):
    monkeypatch.setattr("lightning_prune.trainer.probe._SECONDS_UNTIL_BAR", patience)
    method = IES(threshold=1e9, moving_average=1)
    make_trainer(method, max_epochs=5, enable_progress_bar=True).fit(Model(), make_loader())
    assert ("Refreshing skipped samples" in capfd.readouterr().err) is shown


@pytest.mark.parametrize("kwargs", [{"threshold": -1e-3}, {"threshold": math.nan}, {"moving_average": 0}])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="Expected `"):
        IES(**kwargs)
