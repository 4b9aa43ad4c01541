"""Each logger gets the summary, the kept curve, and the gallery where it can show it; with the real packages."""

from __future__ import annotations

import json

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_prune import InfoBatch, PruningReport
from tests.report.conftest import fit

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations of these packages


def report(folder, logger):
    """Fit with a logger; the page is Markdown, for which nothing is drawn."""
    callback = PruningReport(folder / "report.md", images="pictures")
    fit(InfoBatch(seed=1), callback, logger=logger)
    return callback


def kept(callback):
    return [epoch["kept"] for epoch in callback.epochs]


def test_csv(tmp_path):
    report(tmp_path, CSVLogger(tmp_path, name="run", version=0))
    summary = json.loads((tmp_path / "run" / "version_0" / "prune_summary.json").read_text())
    assert summary["runs"][0]["method"] == "InfoBatch"
    assert "samples" not in summary["runs"][0]
    assert "prune/kept_fraction" in (tmp_path / "run" / "version_0" / "metrics.csv").read_text()


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = report(tmp_path, TensorBoardLogger(tmp_path, name="run", version=0))
    events = EventAccumulator(str(tmp_path / "run" / "version_0"))
    events.Reload()
    assert [scalar.value for scalar in events.Scalars("prune/kept_fraction")] == pytest.approx(kept(callback))
    assert {"prune/gallery/suspicious", "prune/gallery/hardest"} <= set(events.Tags()["images"])
    text = next(tag for tag in events.Tags()["tensors"] if tag.startswith("prune/report"))
    assert b"InfoBatch(prune_ratio=0.5" in events.Tensors(text)[0].tensor_proto.string_val[0]
    image = events.Images("prune/gallery/hardest")[0]
    assert (image.width, image.height) == (8 * 72, 3 * 86)


def test_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path}/mlruns"
    logger = MLFlowLogger("digits", tracking_uri=uri)
    callback = report(tmp_path, logger)
    client = MlflowClient(uri)
    found = {file.path for file in client.list_artifacts(logger.run_id)}
    assert {"report.md", "prune_summary.json", "prune_report.md", "prune_gallery_hardest.png"} <= found
    history = client.get_metric_history(logger.run_id, "prune/kept_fraction")
    assert [point.value for point in history] == pytest.approx(kept(callback))
    assert client.get_run(logger.run_id).data.params["prune/method"] == "InfoBatch"


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=str(tmp_path), offline=True, project="digits")
    callback = report(tmp_path, logger)
    summary = dict(logger.experiment.summary)
    assert summary["prune/fraction"] == pytest.approx(callback.epochs[-1]["saved"], rel=1e-3)
    assert summary["prune/kept_fraction"] == pytest.approx(kept(callback)[-1])
    assert summary["prune/gallery/hardest"]["_type"] == "image-file"
    assert logger.experiment.config["prune/method"] == "InfoBatch"
    wandb.finish()


def test_a_logger_that_fails_does_not_lose_the_run(tmp_path, monkeypatch):
    class Away(CSVLogger):
        @property
        def log_dir(self):
            return str(tmp_path / "run" / "version_0")

    def fail(*args, **kwargs):
        raise ConnectionError("no server")

    monkeypatch.setattr("lightning_prune.report.loggers._brief", fail)
    with pytest.warns(UserWarning, match="Could not hand the report to Away: no server. It is in '.*report.md'"):
        report(tmp_path, Away(tmp_path))
    assert (tmp_path / "report.md").exists()


def test_other_loggers_are_left_alone(tmp_path):
    class Plain(Logger):
        name = version = "plain"

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params):
            pass

    report(tmp_path, Plain())
    assert (tmp_path / "report.md").exists()
