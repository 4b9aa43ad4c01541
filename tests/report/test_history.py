"""What is kept of each sample is what can be recomputed from the losses by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_prune.core.epoch import EpochRecord
from lightning_prune.report import history as module
from lightning_prune.report.history import SLOTS, SampleHistory
from tests.core.runs import Table


def table_of(num_samples, max_epochs=None):
    table = Table()
    table.allocate(num_samples, "cpu")
    table.max_epochs = max_epochs
    return table


def random_epochs(num_samples, num_epochs, seed=0):
    """Losses ``(epochs, n)``; NaN: not trained. Each epoch is visited in an order of its own."""
    rng = np.random.default_rng(seed)
    losses = rng.gamma(2.0, size=(num_epochs, num_samples)).astype(np.float32)
    losses[rng.random(losses.shape) < 0.4] = np.nan
    return losses


def feed(history, table, losses):
    for epoch, row in enumerate(losses):
        table.epoch = epoch
        ids = torch.from_numpy(np.random.default_rng(epoch).permutation(np.flatnonzero(~np.isnan(row))))
        history.take(table, EpochRecord(ids, torch.from_numpy(row)[ids], None, 4, {}))


@pytest.mark.parametrize("num_epochs", [1, 2, 9, 40])
def test_columns_are_those_of_all_losses(num_epochs):
    losses = random_epochs(60, num_epochs)
    history, table = SampleHistory(), table_of(60)
    feed(history, table, losses)
    found = {name: values.numpy() for name, values in history.columns().items()}
    seen = ~np.isnan(losses)
    for i in range(60):
        own = losses[seen[:, i], i].astype(np.float64)
        assert found["times"][i] == len(own)
        assert found["last_epoch"][i] == (np.flatnonzero(seen[:, i])[-1] if len(own) else -1)
        expected = [own.mean(), own.std(), own[0], own[-1]] if len(own) else [np.nan] * 4
        got = [found[name][i] for name in ("mean", "spread", "first", "last")]
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
        forgotten, was_easy = 0, False
        for epoch in np.flatnonzero(seen[:, i]):
            is_easy = losses[epoch, i] < np.float32(losses[epoch][seen[epoch]].astype(np.float64).mean())
            forgotten += was_easy and not is_easy
            was_easy = is_easy
        assert found["forgotten"][i] == forgotten


@pytest.mark.parametrize("max_epochs", [None, 100])
def test_a_long_run_keeps_the_last_loss_of_each_stretch(max_epochs):
    losses = random_epochs(20, 100)
    history, table = SampleHistory(), table_of(20, max_epochs)
    feed(history, table, losses)
    assert history.course.shape == (SLOTS, 20)
    assert history.span == 4
    for slot in range(SLOTS):
        stretch = losses[slot * 4 : slot * 4 + 4]
        for i in range(20):
            own = stretch[~np.isnan(stretch[:, i]), i] if len(stretch) else []
            expected = own[-1] if len(own) else np.nan
            np.testing.assert_allclose(history.course[slot, i], expected, rtol=1e-3)


def test_of_a_large_dataset_some_are_followed(monkeypatch):
    monkeypatch.setattr(module, "MOST_FOLLOWED", 12)
    losses = random_epochs(50, 5)
    history, table = SampleHistory(), table_of(50, 5)
    feed(history, table, losses)
    assert history.course.shape == (SLOTS, 12)
    assert sorted(set(history.followed.tolist())) == history.followed.tolist()
    np.testing.assert_allclose(history.course[:5].float(), losses[:, history.followed], rtol=1e-3)


def test_losses_that_are_not_finite_are_left_out():
    history, table = SampleHistory(), table_of(3)
    for epoch, values in enumerate([[1.0, float("nan"), 2.0], [3.0, 4.0, float("inf")]]):
        table.epoch = epoch
        history.take(table, EpochRecord(torch.arange(3), torch.tensor(values), None, 4, {}))
    assert history.columns()["mean"].tolist() == [2.0, 4.0, 2.0]
    assert history.times.tolist() == [2, 1, 1]


def test_without_losses_visits_are_counted():
    history, table = SampleHistory(), table_of(4)
    nothing = EpochRecord(torch.zeros(0, dtype=torch.int64), torch.zeros(0), None, 4, {})
    history.take(table, nothing, torch.tensor([3, 1, 3]))
    assert history.times.tolist() == [0, 1, 0, 1]
    assert history.columns()["mean"].isnan().all()


def test_the_state_goes_on_as_if_uninterrupted(tmp_path):
    losses = random_epochs(30, 40)
    whole, table = SampleHistory(), table_of(30)
    feed(whole, table, losses)
    first, resumed = SampleHistory(), SampleHistory()
    feed(first, table_of(30), losses[:17])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    table = table_of(30)
    for epoch in range(17, 40):
        table.epoch = epoch
        row = losses[epoch]
        ids = torch.from_numpy(np.random.default_rng(epoch).permutation(np.flatnonzero(~np.isnan(row))))
        resumed.take(table, EpochRecord(ids, torch.from_numpy(row)[ids], None, 4, {}))
    for name, values in whole.state_dict().items():
        other = resumed.state_dict()[name]
        if isinstance(values, torch.Tensor):
            assert torch.equal(values.nan_to_num(-1), other.nan_to_num(-1)), name
        else:
            assert values == other


def test_appended_samples_are_taken_in():
    history, table = SampleHistory(), table_of(2)
    history.take(table, EpochRecord(torch.arange(2), torch.tensor([1.0, 2.0]), None, 4, {}))
    table.grow(4)
    table.epoch = 1
    history.take(table, EpochRecord(torch.tensor([3, 0]), torch.tensor([5.0, 3.0]), None, 4, {}))
    assert history.times.tolist() == [2, 1, 0, 1]
    assert history.columns()["mean"].nan_to_num(-1).tolist() == [2.0, 2.0, -1.0, 5.0]


def test_bytes_of_a_sample():
    history = SampleHistory()
    history.start(1000, "cpu")
    state = history.state_dict()
    assert sum(values.nbytes for name, values in state.items() if name in module._COLUMNS) == 23 * 1000
    assert state["course"].nbytes == 64 * 1000
