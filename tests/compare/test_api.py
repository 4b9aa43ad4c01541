"""The comparison from Python: the same engine, runs in this process."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule

from lightning_prune import PruningReport, RandomPruning
from lightning_prune.compare import compare_methods
from tests.compare.methods import Keeping
from tests.helpers import Model, make_dataset, make_loader

pytestmark = pytest.mark.filterwarnings("ignore")


def make_data():
    return make_loader(40), make_loader(40, shuffle=False)


def make_model():
    model = Model(dropout=0.5)
    torch.nn.init.normal_(model.layer.weight)  # of the global seed
    return model


@pytest.fixture(scope="module")
def result():
    smoothed = {"class_path": "BatchLossScore", "init_args": {"base": {"class_path": "OrderDP"}}}
    methods = [
        "RandomPruning",
        Keeping,
        {"smoothed": smoothed, "crash": {"class_path": "tests.compare.methods.Crashing"}},
    ]
    return compare_methods(make_model, make_data, methods, [0.5], seeds=3, max_epochs=4, metric="val_loss")


def test_runs(result):
    rows = {(row.label, row.ratio): row for row in result.rows}
    assert {key: len(row.values) for key, row in rows.items()} == {
        ("full data", None): 3,
        ("full data, 2 of 4 epochs", None): 3,
        ("RandomPruning", 0.5): 3,
        ("Keeping", 0.5): 3,
        ("smoothed", 0.5): 3,
        ("crash", None): 0,
    }
    assert result.lower
    for key in (("RandomPruning", 0.5), ("smoothed", 0.5), ("full data, 2 of 4 epochs", None)):
        assert rows[key].saved == pytest.approx([0.5] * 3, abs=0.03)
    values = list(rows["full data", None].values.values())
    assert len(set(values)) == 3
    assert rows["full data", None].values != rows["RandomPruning", 0.5].values
    assert result.failed.keys() == {f"crash-seed-{seed}" for seed in range(3)}
    assert "RuntimeError: no more samples for you" in result.failed["crash-seed-0"]


def test_result(result):
    assert result.table.startswith("| method")
    assert len(result.verdicts) == len(result.rows)
    assert result.verdicts[0] is None
    assert all(verdict.num_pairs == 3 for verdict in result.verdicts[1:-1])
    pytest.importorskip("matplotlib")
    assert result.plot().axes
    frame = result.to_pandas()
    assert frame["val_loss"].notna().sum() == 15


def test_runs_are_those_of_the_seed_and_are_kept(tmp_path):
    def again(**kwargs):
        reporting = {"logger": False, "callbacks": [PruningReport(tmp_path / "mine.md", images=str)]}
        kwargs["trainer"] = reporting | kwargs.get("trainer", {})
        mine = {"mine": {"class_path": "RandomPruning", "init_args": {"prune_ratio": 0.3}}}
        settings = {"seeds": 1, "max_epochs": 2, "metric": "val_loss", "output": tmp_path / "out", **kwargs}
        return compare_methods(make_model, make_data, [mine], **settings)

    first = again()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/result.json")}
    assert len(stamps) == 2
    assert (tmp_path / "out" / "results.md").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mine" in page
    assert '"texts":{"' in page  # of the report among the callbacks
    assert not (tmp_path / "mine.md").exists()
    assert [row.values for row in again().rows] == [row.values for row in first.rows]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with pytest.raises(ValueError, match="differ: trainer.gradient_clip_val is None there"):
        again(trainer={"gradient_clip_val": 1.0})


def test_data_are_a_module_or_a_loader_alone():
    def module():
        return LightningDataModule.from_datasets(make_dataset(40), make_dataset(40), batch_size=4)

    settings = {"seeds": 1, "max_epochs": 1, "metric": "val_loss"}
    assert len(compare_methods(make_model, module, ["RandomPruning"], [0.3], **settings).rows) == 2
    with pytest.raises(ValueError, match=r"that the training logs, of \[\], but got 'val_loss'"):
        compare_methods(make_model, lambda: make_data()[0], ["RandomPruning"], [0.3], **settings)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"ratios": [1.5]}, ValueError, r"Expected `ratios` to be numbers in \(0, 1\), but got 1.5"),
        ({"ratios": []}, ValueError, "Expected `ratios`, shares of the sample-steps"),
        ({"seeds": 0}, ValueError, "`seeds`"),
        ({"max_epochs": 0}, ValueError, "`max_epochs`"),
        ({"max_seeds": 2}, ValueError, "`max_seeds`"),
        ({"margin": -0.1}, ValueError, "`margin` to be a number >= 0"),
        ({"better": "up"}, ValueError, "`better` to be 'higher', 'lower' or None, but got 'up'"),
        ({"methods": []}, ValueError, "`methods` to be at least one"),
        ({"methods": ["RePB", "RePB"]}, ValueError, "each once, but got"),
        ({"methods": ["InfoBach"]}, ValueError, "to be one of DivBS"),
        ({"methods": [RandomPruning()]}, ValueError, "a name, a class, or a mapping of a label"),
        ({"methods": [{"x": {"class_path": "torch.nn.Linear"}}]}, ValueError, "to be a `PruningCallback`"),
        ({"metric": "val_f1"}, ValueError, "to be one that the training logs, of .*, but got 'val_f1'"),
        (
            {"make_model": lambda: 1},
            ValueError,
            "a training that runs, but a trial of a few batches ended in Typ",
        ),
    ],
)
def test_mistakes(change, error, match):
    given = {
        "make_model": make_model,
        "make_data": make_data,
        "methods": ["RePB"],
        "ratios": [0.3],
        "metric": "val_loss",
    }
    with pytest.raises(error, match=match):
        compare_methods(**{**given, **change})
