"""The table of per-sample state: columns, progress, selections, export; without a Trainer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_prune.core import export
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.plan import Selection
from tests.core.runs import NUM_SAMPLES, Hardest, Run, Table


def allocated(num_samples=NUM_SAMPLES):
    table = Table()
    table.allocate(num_samples, "cpu")
    return table


def trained(epochs=2):
    """Return the table of a run, with a column of two slots beside the method's own."""
    run = Run(Hardest())
    for _ in range(epochs):
        run.epoch()
    table = run.session.table
    table.add_column("history", fill=math.nan, slots=2)
    table.column("history")[1] = torch.arange(NUM_SAMPLES)
    return table


def test_before_a_run():
    table = Table()
    assert (table.num_samples, table.epoch, table.selection, table.saved_fraction) == (0, 0, None, 0.0)
    with pytest.raises(RuntimeError, match="there is none before training starts"):
        _ = table.losses
    with pytest.raises(KeyError, match="one of \\[\\], but got 'window'"):
        table.column("window")


def test_allocation_knows_nothing():
    table = trained()
    table.allocate(3, "cpu")
    assert table.losses.isnan().all()
    assert table.losses.dtype == torch.float32
    assert table.counts.tolist() == [0, 0, 0]
    assert table.counts.dtype == torch.int16
    assert (table.epoch, table.trained_steps, table.full_steps, table.plan) == (0, 0, 0, None)
    assert not table.has_column("history")


def test_columns():
    table = allocated()
    table.add_column("single", fill=2.0)
    table.add_column("several", dtype=torch.int32, slots=3)
    assert table.column("single").tolist() == [2.0] * NUM_SAMPLES
    assert table.column("several").shape == (3, NUM_SAMPLES)
    table.column("single")[4] = 5.0
    table.add_column("single", fill=2.0)  # declared again on resume: what is there stays
    assert table.column("single")[4] == 5
    with pytest.raises(KeyError, match=r"one of \['several', 'single'\], but got 'other'"):
        table.column("other")


@pytest.mark.parametrize("change", [{"slots": 5}, {"dtype": torch.float64}, {"slots": None}], ids=str)
def test_a_column_of_another_shape_is_refused(change):
    table = trained()
    with pytest.raises(ValueError, match=r"column 'history' of shape .*the checkpoint holds \(2, 22\).*Resume with"):
        table.add_column("history", **{"slots": 2, **change})


def test_state_beside_the_samples():
    table = allocated()
    table.add_state("ratio", torch.tensor(0.5))
    table.state["ratio"].fill_(0.75)
    table.add_state("ratio", torch.tensor(0.5))
    assert table.state["ratio"] == 0.75


def test_replaced_scores_are_a_view():
    table = trained()
    scores = torch.arange(float(NUM_SAMPLES))
    view = table.replace_scores(scores)
    assert view.scores is scores
    assert view.losses is table.losses
    assert table.scores is table.losses
    view.column("history")[0, 3] = 9.0
    assert table.column("history")[0, 3] == 9


def test_selections_are_ascending_with_their_weights():
    table = allocated(6)
    table.take_selection(Selection(torch.tensor([4, 1, 5]), torch.tensor([4.0, 1.0, 5.0])))
    assert table.selected.tolist() == [False, True, False, False, True, True]
    assert not table.selects_all
    table.sharded = True
    table.take_selection(Selection(torch.tensor([4, 1, 5]), torch.tensor([4.0, 1.0, 5.0])))
    assert table.own_weights.tolist() == [1.0, 4.0, 5.0]
    run = Run(Hardest())
    run.epoch()
    run.session.begin_epoch()
    selection = run.session.table.selection
    assert selection.ascending
    assert torch.equal(selection.weights, 1 + selection.indices / 8)
    table.take_selection(Selection.all(6))
    assert table.selects_all
    assert table.selected.all()


def test_progress_is_of_steps_if_they_are_limited_else_of_epochs():
    table = allocated()
    assert table.progress == 0.0
    table.max_epochs, table.epoch = 8, 2
    assert table.progress == 0.25
    table.max_steps, table.global_step = 100, 40
    assert table.progress == 0.4


def test_saved_fraction():
    table = trained(2)
    assert table.trained_steps == NUM_SAMPLES + len(table.selection)
    assert table.full_steps == 2 * NUM_SAMPLES
    assert table.saved_fraction == 1 - table.trained_steps / table.full_steps


def test_counts_outgrow_int16():
    """In a run of more than 32,767 epochs, and through a checkpoint of one."""
    table = allocated(3)
    table.counts.fill_(32_765)
    table.take_selection(Selection(torch.tensor([0, 2])))
    for _ in range(4):
        table.count_selected()
    assert table.counts.tolist() == [32_769, 32_765, 32_769]
    other = Table()
    other.load_columns(table.state_columns(), 3, torch.device("cpu"))
    assert other.counts.tolist() == [32_769, 32_765, 32_769]
    other.take_selection(Selection.all(3))
    other.count_selected()
    assert other.counts.tolist() == [32_770, 32_766, 32_770]


def test_saved_columns_are_loaded():
    table, other = trained(), Table()
    table.add_state("ratio", torch.tensor(0.5))
    state = table.state_columns()
    assert state["counts"].dtype == torch.uint8
    table.losses.fill_(0)  # what was saved is a copy
    other.load_columns(state, NUM_SAMPLES, torch.device("cpu"))
    assert other.counts.dtype == torch.int16
    assert torch.equal(other.losses, state["losses"])
    assert other.losses.all()
    for name in ("history", "visits"):
        assert torch.equal(other.column(name).nan_to_num(-1), table.column(name).nan_to_num(-1))
    assert other.state["ratio"] == 0.5
    with pytest.raises(StateMismatchError, match="dataset of 22 samples.*but got 23"):
        Table().load_columns(state, 23, torch.device("cpu"))


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ""])
def test_export(suffix, tmp_path):
    table = trained()
    table.save(tmp_path / f"table{suffix}")
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        saved = pq.read_table(tmp_path / "table.parquet").to_pydict()
        assert saved["history_1"] == list(range(NUM_SAMPLES))
    else:
        saved = dict(np.load(tmp_path / "table.npz"))
        assert saved["history"].shape == (2, NUM_SAMPLES)
    assert list(saved["indices"]) == list(range(NUM_SAMPLES))
    assert np.allclose(saved["losses"], table.losses.numpy())
    assert list(saved["counts"]) == table.counts.tolist()
    assert [path.suffix for path in tmp_path.iterdir()] == [suffix or ".npz"]


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`.npz` or `.parquet`, but got '.*table.csv'"):
        allocated().save(tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    table, path = allocated(), tmp_path / "table.npz"
    table.save(path)
    before = path.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.np, "savez", disk_full)
    with pytest.raises(OSError, match="No space left"):
        table.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
