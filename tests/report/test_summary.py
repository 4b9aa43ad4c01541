"""The summary is what can be recomputed from the record, and each rendering holds it."""

from __future__ import annotations

import json
import re
from importlib import resources

import jsonschema
import numpy as np
import pytest

from lightning_prune.report import RunRecord, render, summarize, write_report
from lightning_prune.report import summary as module
from lightning_prune.report.numbers import short
from tests.report.conftest import made_record

SCHEMA = json.loads(resources.files("lightning_prune.report").joinpath("summary.schema.json").read_text())


@pytest.fixture(scope="module")
def record():
    return made_record()


@pytest.fixture(scope="module")
def summary(record):
    return summarize([record])


def as_json(summary):
    return json.loads(render(summary, ".json"))


def test_it_keeps_to_its_schema(summary):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(as_json(summary), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(as_json(summary) | {"more": 1}, SCHEMA)


def test_several_runs_keep_to_it():
    several = summarize([made_record(seed=0), made_record(seed=1), made_record(seed=0)])
    jsonschema.validate(as_json(several), SCHEMA)
    names = [run["name"] for run in several["runs"]]
    assert len(set(names)) == 3


def test_values(summary, record):
    (run,) = summary["runs"]
    kept = ~np.isnan(record.course)
    assert run["saved"]["fraction"] == pytest.approx(1 - kept.mean(), rel=1e-3)
    assert run["saved"]["seconds_saved"] == pytest.approx(24 * (1 / kept.mean() - 1), rel=1e-3)
    assert sum(bar["samples"] for bar in run["usage"]["bars"]) == 500
    assert run["usage"]["only_first"] == int((kept[1:].sum(0) == 0).sum())
    assert run["usage"]["never"] == 0
    given = record.columns["given"]
    shares = [kept[1:, given == c].mean() for c in range(5)]  # the first epoch is full
    assert run["classes"]["kept"] == short(np.array(shares))
    assert run["classes"]["starved"] == [4]
    assert "Starved: class 4 (0.3" in run["warnings"][0]
    rows = run["samples"]
    assert rows["id"] == list(range(500))
    assert rows["mean"] == short(record.columns["mean"])
    assert len(run["drawn"]) == len(set(run["drawn"])) == 500


def test_gallery(summary, record):
    gallery, columns = summary["runs"][0]["gallery"], record.columns
    order = np.argsort(-columns["mean"].astype(float), kind="stable")
    assert gallery["hardest"]["ids"] == order[:24].tolist()
    assert set(gallery["easiest"]["ids"]) == set(order[-24:].tolist())
    assert {int(columns["forgotten"][i]) for i in gallery["forgotten"]["ids"]} == {3}
    assert list(gallery) == ["suspicious", "hardest", "easiest", "forgotten"]
    assert "far above that of the given class" in gallery["suspicious"]["why"]


def test_a_hard_class_is_not_called_suspicious():
    record = made_record(num_samples=1000)
    hard = record.columns["given"] == 2
    record.columns["mean"][hard] += 50
    outlier = int(np.flatnonzero(~hard)[0])
    record.columns["mean"][outlier] = 20
    gallery = summarize([record])["runs"][0]["gallery"]
    assert outlier not in gallery["hardest"]["ids"]
    assert gallery["suspicious"]["ids"][0] == outlier


def test_what_a_callback_suspects_goes_first():
    record = made_record()
    record.columns["suspicion"] = np.linspace(0, 1, 500, dtype=np.float32)
    record.columns["suggested"] = np.full(500, 3)
    summary = summarize([record])
    assert summary["runs"][0]["gallery"]["suspicious"]["ids"] == list(range(499, 475, -1))
    jsonschema.validate(as_json(summary), SCHEMA)
    assert "| 499 | class " in render(summary, ".md")


def test_a_large_dataset_is_sampled_and_says_so(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 200)
    monkeypatch.setattr(module, "MOST_DRAWN", 120)
    run = summarize([made_record(num_samples=1000)])["runs"][0]
    assert len(run["samples"]["id"]) == len(set(run["samples"]["id"])) == 200
    assert len(run["drawn"]) == 120
    ids = {i for part in run["gallery"].values() for i in part["ids"]}
    assert ids <= set(run["drawn"]) <= set(run["samples"]["id"])
    assert re.search(r"Of 1,000 samples, the table has \d+: those of the gallery", run["notes"][0])
    assert sum(bar["samples"] for bar in run["usage"]["bars"]) == 1000  # counts are of all


def test_samples_without_a_loss_are_none(record):
    broken = made_record()
    for name in ("mean", "spread", "first", "last"):
        broken.columns[name][3] = np.nan
    broken.columns["times"][3] = 0
    summary = summarize([broken])
    jsonschema.validate(as_json(summary), SCHEMA)
    run = summary["runs"][0]
    assert run["samples"]["mean"][3] is None
    assert run["usage"]["never"] == 1
    assert all(3 not in part["ids"] for name, part in run["gallery"].items() if name != "forgotten")


def test_without_classes_and_pictures():
    record = made_record(looks=False)
    record.class_kept = None
    record.meta |= {"has_classes": False, "class_names": None}
    del record.columns["given"]
    run = summarize([record])["runs"][0]
    assert run["classes"] is None
    assert "suspicious" not in run["gallery"]
    assert "No class ids were found" in " ".join(run["notes"])


def test_comparison():
    first, second = made_record(seed=0), made_record(seed=1)
    comparison = summarize([first, second])["comparison"]
    shares = np.stack([r.columns["times"] / 12 for r in (first, second)])
    differences = np.abs(shares[0] - shares[1])
    assert comparison["ids"] == np.argsort(-differences, kind="stable")[:24].tolist()
    assert sum(comparison["differences"]) == 500
    assert comparison["same_labels"] is False
    same = summarize([first, first])["comparison"]
    assert same["ids"] == []
    assert same["shared_usage"] == [[1.0, 1.0], [1.0, 1.0]]


def test_rank_correlation_is_spearman_s():
    stats = pytest.importorskip("scipy.stats")
    first, second = made_record(seed=0), made_record(seed=1)
    comparison = summarize([first, second])["comparison"]
    for name, key in (("times", "shared_usage"), ("mean", "shared_losses")):
        expected = stats.spearmanr(first.columns[name], second.columns[name])[0]
        assert comparison[key][0][1] == pytest.approx(expected, rel=1e-3)


def test_runs_of_other_datasets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected runs on the same training dataset.*500 samples.*300 samples"):
        summarize([made_record(), made_record(num_samples=300)])
    with pytest.raises(ValueError, match="Expected at least one run"):
        write_report([], tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_read_as_it_was_written(tmp_path, record):
    record.looks.texts[5] = "a text"
    record.save(tmp_path / "prune_report.npz")
    read = RunRecord.load(tmp_path)
    assert read.meta == record.meta | {"folder": str(tmp_path)}
    assert read.columns.keys() == record.columns.keys()
    for name, values in record.columns.items():
        np.testing.assert_array_equal(read.columns[name], values)
    np.testing.assert_array_equal(read.course, record.course)
    np.testing.assert_array_equal(read.class_kept, record.class_kept)
    assert (read.looks.pictures, read.looks.texts) == (record.looks.pictures, record.looks.texts)
    del record.looks.texts[5]


def test_folders_without_a_history_are_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    message = "Expected the log folder of a run with a per-sample history, but the folder .* has no `prune_report.npz`"
    with pytest.raises(FileNotFoundError, match=f"{message}.*`PruningReport\\(\\)` among its callbacks"):
        RunRecord.load(tmp_path)
    (tmp_path / "inner" / "prune_report.npz").touch()
    with pytest.raises(FileNotFoundError, match="Did you mean '.*inner'"):
        RunRecord.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no '.*missing'"):
        RunRecord.load(tmp_path / "missing")


def test_other_files_are_refused(tmp_path, record):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "broken.npz").write_text("not a zip")
    for name in ("other", "broken"):
        with pytest.raises(ValueError, match="Expected '.*npz' to be what `PruningReport` wrote, but it is not"):
            RunRecord.load(tmp_path / f"{name}.npz")
    record.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as file:
        arrays = dict(file)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | {"format": 99}))
    np.savez(tmp_path / "new.npz", **arrays)
    with pytest.raises(ValueError, match="Expected a record of version <= 1, but '.*new.npz' has 99"):
        RunRecord.load(tmp_path / "new.npz")


def test_markdown(summary):
    text = render(summary, ".md")
    assert "| version_0 | InfoBatch(prune_ratio=0.5) | val_acc 0.85 |" in text
    assert "> **Warning.** Starved: class 4" in text
    assert "## Most suspicious labels" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):  # every table has as many cells in each line
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    several = render(summarize([made_record(seed=0), made_record(seed=1)]), ".md")
    assert "## Comparison" in several


def test_rounding():
    values = np.array([0.123456, -98765.4, 0.0, np.nan, np.inf, 1e-12, 3.0])
    assert short(values) == [0.1235, -98770.0, 0.0, None, None, 1e-12, 3.0]
    assert short(0.1 + 0.2) == 0.3
    assert short("text") == "text"
