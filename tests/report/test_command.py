"""``lightning-prune report``: pages of runs that are over, and what it refuses."""

from __future__ import annotations

import json

import pytest

from lightning_prune.cli import main
from tests.report.conftest import made_record


def test_one_run(runs, tmp_path, capsys):
    main(["report", str(runs["infobatch"]), "--output", str(tmp_path / "one.json")])
    assert capsys.readouterr().out == f"Wrote {tmp_path}/one.json of 1 run.\n"
    summary = json.loads((tmp_path / "one.json").read_text())
    assert summary["comparison"] is None
    assert summary["runs"][0]["method"] == "InfoBatch"
    assert len(summary["looks"]["pictures"]) == 40  # the dataset is not needed


def test_several_runs(runs, tmp_path, capsys):
    main(["report", *map(str, runs.values()), "--output", str(tmp_path / "all.md")])
    assert capsys.readouterr().out == f"Wrote {tmp_path}/all.md of 3 runs.\n"
    text = (tmp_path / "all.md").read_text()
    assert "## Comparison" in text
    assert "| RandomPruning(prune_ratio=0.5" in text


def test_the_page_is_written_by_default(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report", *map(str, runs.values())])
    page = (tmp_path / "report.html").read_text()
    assert "3 runs side by side" in page
    assert page.count("</script>") == page.count("<script")  # a class is named so


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, args)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_refusals(runs, tmp_path, capsys):
    output = ["--output", tmp_path / "report.md"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    error = refusal(capsys, tmp_path / "empty", *output)
    assert error.startswith("error: Expected the log folder of a run with a per-sample history, but the folder")
    assert "`PruningReport()` among its callbacks" in error
    made_record(num_samples=60).save(tmp_path / "other" / "prune_report.npz")
    error = refusal(capsys, runs["full"], tmp_path / "other", *output)
    assert "Expected runs on the same training dataset" in error
    assert "40 samples" in error
    assert "60 samples" in error
    assert "Expected to be able to write" in refusal(capsys, runs["full"], "--output", tmp_path / "file" / "a.md")
    assert "Expected the path of a report to end in" in refusal(capsys, runs["full"], "--output", tmp_path / "a.pdf")
    assert "the following arguments are required: RUN" in refusal(capsys)
    assert not (tmp_path / "report.md").exists()
