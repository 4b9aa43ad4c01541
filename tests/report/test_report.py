"""`PruningReport` in real fits: it reports what happened, the training does not notice, and a resume goes on."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import DivBS, InfoBatch, LabelIssues, PruningReport, RandomPruning, ScoreRegistry
from lightning_prune.cli import main
from lightning_prune.report import RunRecord, write_report
from lightning_prune.report.callback import choose_metric
from tests.helpers import Keep, Model, PlainModel, make_dataset, make_loader, make_trainer, registry_of
from tests.report.conftest import NUM, fit, pictured_set
from tests.streams import IdModel, make_stream


class Recorded(Model):
    """Notes each loss of each epoch, as the module sees it."""

    def on_train_start(self):
        self.table = []

    def on_train_epoch_start(self):
        self.table.append(np.full(NUM, np.nan))

    def losses(self, batch):
        found = super().losses(batch)
        if self.training:
            self.table[-1][batch[2].numpy()] = found.detach().numpy()
        return found


METHODS = {
    "infobatch": lambda: [InfoBatch(seed=1)],
    "random": lambda: [RandomPruning(0.4, seed=1)],
    "divbs": lambda: [DivBS(0.5, seed=1)],
    "none": list,
}


@pytest.mark.parametrize("name", METHODS)
def test_it_reports_what_happened(name, tmp_path):
    report = PruningReport(tmp_path / "report.json", images="pictures")
    trainer, model = fit(*METHODS[name](), report, model=Recorded(), data=pictured_set())
    losses, record = np.stack(model.table), report.record
    trained = ~np.isnan(losses)
    np.testing.assert_array_equal(record.columns["times"], trained.sum(0))
    some = trained.any(0)
    assert np.isnan(record.columns["mean"][~some]).all()
    np.testing.assert_allclose(record.columns["mean"][some], np.nanmean(losses[:, some], 0), rtol=1e-5)
    np.testing.assert_allclose(record.columns["spread"][some], np.nanstd(losses[:, some], 0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(record.course[:4], losses, rtol=1e-3)
    given = pictured_set().tensors[1].numpy()
    np.testing.assert_array_equal(record.columns["given"], given)
    expected = [[trained[e][given == c].sum() for c in (0, 1)] for e in range(4)]
    np.testing.assert_array_equal(record.class_kept, expected)
    summary = json.loads((tmp_path / "report.json").read_text())
    (run,) = summary["runs"]
    assert [epoch["trained"] for epoch in run["epochs"]] == trained.sum(1).tolist()
    assert run["saved"]["fraction"] == pytest.approx(registry_of(trainer).saved_fraction, rel=1e-3)
    assert run["metric"]["name"] == "val_loss"
    assert [epoch for epoch, _ in run["metric"]["curve"]] == [0, 1, 2, 3]
    assert len(summary["looks"]["pictures"]) == NUM
    assert np.load(tmp_path / "report.npz").files  # beside the page, as there is no logger


@pytest.mark.parametrize("name", METHODS)
def test_the_training_does_not_notice(name, tmp_path):
    ends = []
    for report in ([ScoreRegistry()], [PruningReport(tmp_path / "report.json", images="pictures")]):
        random.seed(3)
        np.random.seed(3)
        _, model = fit(*METHODS[name](), *report, model=Model(dropout=0.3))
        states = (torch.rand(1).item(), np.random.rand(), random.random())
        ends.append((model.seen, {n: v.tolist() for n, v in model.state_dict().items()}, states))
    assert ends[0] == ends[1]


class StopAt(Callback):
    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)
            raise KeyError("stopped")


@pytest.mark.parametrize("at", [(1, 2), (2, 1), "last batch", "epoch"])
def test_a_resumed_run_reports_on_all_of_it(at, tmp_path):
    def report(name):
        return PruningReport(tmp_path / f"{name}.json")

    whole = report("whole")
    fit(Keep(1.0, 0.5, seed=1), whole)
    path = tmp_path / "state.ckpt"
    if at == "epoch":
        trainer, _ = fit(Keep(1.0, 0.5, seed=1), report("first"), max_epochs=2)
        trainer.save_checkpoint(path)
    else:
        stop = StopAt(*((1, 4) if at == "last batch" else at))  # the second epoch has five batches
        stop.path = path
        with pytest.raises(KeyError, match="stopped"):
            fit(Keep(1.0, 0.5, seed=1), report("first"), stop)
    resumed = report("resumed")
    trainer = make_trainer(Keep(1.0, 0.5, seed=1), resumed)
    loader = DataLoader(pictured_set(), 4, shuffle=True)
    trainer.fit(Model(), loader, DataLoader(pictured_set(8), 8), ckpt_path=path, weights_only=True)
    for name, values in whole.record.columns.items():
        np.testing.assert_array_equal(resumed.record.columns[name], values, err_msg=name)
    np.testing.assert_array_equal(resumed.record.course, whole.record.course)
    np.testing.assert_array_equal(resumed.record.class_kept, whole.record.class_kept)
    for one, other in zip(whole.epochs, resumed.epochs, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_second_fit_starts_anew(tmp_path):
    report = PruningReport(tmp_path / "report.json")
    for _ in range(2):
        fit(InfoBatch(seed=1), report)
    assert [epoch["epoch"] for epoch in report.epochs] == [0, 1, 2, 3]
    assert report.record.columns["times"].max() <= 4


def test_a_run_that_joins_late_says_so(tmp_path):
    trainer, _ = fit(InfoBatch(seed=1), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    report = PruningReport(tmp_path / "report.json")
    trainer = make_trainer(InfoBatch(seed=1), report)
    trainer.fit(Model(), DataLoader(pictured_set(), 4, shuffle=True), ckpt_path=tmp_path / "state.ckpt")
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert [epoch["epoch"] for epoch in run["epochs"]] == [2, 3]
    assert "The report took part from epoch 2 on" in run["notes"][0]


def test_a_module_without_losses(tmp_path):
    report = PruningReport(tmp_path / "report.json")
    fit(RandomPruning(0.5, seed=1), report, model=PlainModel())
    assert report.record.columns["times"].sum() == 4 * NUM - round((1 - 0.5) * NUM) * 4
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert "The run recorded no losses" in " ".join(run["notes"])
    assert run["gallery"]["hardest"]["ids"] == []


def test_a_dataset_that_grows(tmp_path):
    class Growing(Model):
        def train_dataloader(self):
            return make_loader(40 + 8 * self.current_epoch)

    report = PruningReport(tmp_path / "report.json")
    trainer = make_trainer(InfoBatch(seed=1), report, reload_dataloaders_every_n_epochs=1)
    with pytest.warns(UserWarning, match="has grown from 40 to 48"):
        trainer.fit(Growing())
    assert report.record.num_samples == 64
    assert report.record.columns["times"][40:48].min() >= 1
    assert report.record.class_kept.shape == (4, 2)


def test_a_starved_class_is_warned_about(tmp_path):
    class First(Keep):
        def select(self, registry, epoch, generator):
            from lightning_prune import Selection

            few = torch.arange(NUM)[(given == 1) | (torch.arange(NUM) % 10 == 0)]
            return Selection(few if epoch else torch.arange(NUM))

    given = pictured_set().tensors[1]
    report = PruningReport(tmp_path / "report.md")
    with pytest.warns(UserWarning, match=r"Class 'low' was kept at 0\.\d\d of the average share"):
        fit(First(), report, data=pictured_set(), max_epochs=6)
    assert "Starved: low" in (tmp_path / "report.md").read_text()


class Suspects(Callback):
    """As a callback that finds label issues."""

    def issues(self):
        index = torch.arange(NUM).flip(0)
        return {"index": index, "score": index / NUM, "given": index * 0, "suggested": index * 0 + 1}


def test_what_another_callback_suspects_is_shown(tmp_path):
    report = PruningReport(tmp_path / "report.json")
    fit(Suspects(), report)
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["gallery"]["suspicious"]["ids"][:3] == [39, 38, 37]
    assert run["samples"]["suggested"] == [1] * NUM


def test_nothing_is_written_where_nothing_was_trained(tmp_path):
    report = PruningReport(tmp_path / "report.json")
    fit(InfoBatch(), report, fast_dev_run=True)
    with pytest.warns(UserWarning, match="overfit"):  # of ours, and of Lightning's
        fit(report, ScoreRegistry(), overfit_batches=2)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_known_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    model = Model()
    for path, error in ((tmp_path / "file" / "report.md", OSError), (tmp_path / "folder.html", IsADirectoryError)):
        with pytest.raises(error, match="Expected .*Name another path for the report"):
            make_trainer(InfoBatch(), PruningReport(path)).fit(model, make_loader())
    assert model.seen == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html"]


def test_wrong_arguments_are_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"Expected the path of a report to end in one of \['.html', '.md', '.json'\]"):
        PruningReport("report.pdf")
    with pytest.raises(TypeError, match="Expected `images` to be a function or the name of an attribute, but got 3"):
        PruningReport("report.md", images=3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-prune\[report\]'"):
        PruningReport("report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": "texture"}, "to hold 'texture', one picture or text"),
        ({"images": "wide"}, "Expected `images` to show sample 0, but: Expected a picture of shape"),
        ({"targets": "genre"}, "to hold 'genre', one value per sample"),
        ({"targets": "pictures"}, "to hold one value for each of its 40 samples"),
    ],
)
def test_what_the_dataset_does_not_hold_is_refused_before_the_training(arguments, message, tmp_path):
    data, model = pictured_set(), Model()
    data.wide = np.zeros((NUM, 5, 6, 7))
    with pytest.raises(MisconfigurationException, match=message):
        fit(InfoBatch(), PruningReport(tmp_path / "report.md", **arguments), data=data, model=model)
    assert model.seen == []


def test_labels_that_are_no_class_ids(tmp_path):
    data = TensorDataset(*make_dataset().tensors)
    data.targets = torch.linspace(-1, 1, NUM)
    report = PruningReport(tmp_path / "report.json")
    fit(InfoBatch(), report, data=data)
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["classes"] is None
    assert run["samples"]["given"][0] == -1.0


def test_runs_leave_what_a_report_of_several_needs(runs, tmp_path):
    records = {name: RunRecord.load(folder) for name, folder in runs.items()}
    assert [record.meta["method"] for record in records.values()] == ["InfoBatch", "RandomPruning", None]
    assert records["infobatch"].meta["arguments"]["prune_ratio"] == 0.5
    assert records["infobatch"].meta["arguments"]["log"] is True
    path = write_report(list(runs.values()), tmp_path / "all.json")
    summary = json.loads(path.read_text())
    assert summary["comparison"]["same_labels"] is True
    assert len(summary["comparison"]["names"]) == len(set(summary["comparison"]["names"])) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"all.json"}


def test_from_yaml(tmp_path, monkeypatch):
    callbacks = [
        {"class_path": "InfoBatch"},
        {"class_path": "PruningReport", "init_args": {"path": str(tmp_path / "report.md"), "targets": 1}},
    ]
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    trainer = {"max_epochs": 4, "accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    config = {
        "seed_everything": False,
        "model": {"class_path": "tests.helpers.ModelWithData"},
        "trainer": {**trainer, "callbacks": callbacks, "logger": logger},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["lightning-prune"])
    main(["fit", "--config", str(tmp_path / "config.yaml")])
    assert "InfoBatch(prune_ratio=0.5" in (tmp_path / "report.md").read_text()
    assert RunRecord.load(tmp_path / "lightning_logs" / "version_0").num_samples == 40


@pytest.mark.parametrize(
    ("logged", "chosen"),
    [
        ({"train_acc": 1, "val_loss": 1, "val_accuracy": 1}, "val_accuracy"),
        ({"train_loss": 1, "val_loss": 1, "prune/score_mean": 1}, "val_loss"),
        ({"f1": 1}, "f1"),
        ({"prune/kept_fraction": 1}, None),
    ],
)
def test_the_metric_that_is_shown(logged, chosen):
    assert choose_metric(logged, None) == chosen
    assert choose_metric(logged, "f1") == ("f1" if "f1" in logged else None)


def test_a_stream(tmp_path):
    """Its samples have ids, but no labels or pictures that could be looked up."""
    report = PruningReport(tmp_path / "report.json", images=lambda i: f"line {i}")
    trainer = make_trainer(Keep(1.0, 0.5), ScoreRegistry(num_samples=NUM), report)
    trainer.fit(IdModel(), make_stream(pruned=True))
    summary = json.loads((tmp_path / "report.json").read_text())
    assert [epoch["trained"] for epoch in summary["runs"][0]["epochs"]] == [40, 20, 40, 20]
    assert summary["runs"][0]["classes"] is None
    assert summary["looks"]["texts"]["7"] == "line 7"
    trainer = make_trainer(ScoreRegistry(num_samples=NUM), PruningReport(tmp_path / "b.md", targets="y"))
    with pytest.raises(MisconfigurationException, match="Expected a dataset of known length to look up `targets='y'`"):
        trainer.fit(IdModel(), make_stream())


def test_beside_label_issues(tmp_path):
    """Its scores, and what it suggests, lead the gallery; whichever comes first among the callbacks."""
    for i, order in enumerate((1, -1)):
        issues, report = LabelIssues(), PruningReport(tmp_path / f"{i}.json")
        fit(InfoBatch(seed=1), *[issues, report][::order])
        (run,) = json.loads((tmp_path / f"{i}.json").read_text())["runs"]
        found = issues.issues()
        assert run["gallery"]["suspicious"]["ids"][0] == int(found["index"][0])
        assert run["samples"]["suspicion"][int(found["index"][0])] == pytest.approx(float(found["score"][0]), rel=1e-3)
        suggested = torch.empty(NUM, dtype=torch.int64).index_copy_(0, found["index"], found["suggested"])
        assert run["samples"]["suggested"] == suggested.tolist()
