"""Rows, table, csv and plots from results made by hand."""

from __future__ import annotations

import csv
import math
import sys

import pytest

from lightning_prune.compare import report


def run(label, ratio, seed, value=None, saved=0.0, seconds=10.0, **more):
    name = f"{label}-{ratio}-{seed}"
    spec = {"name": name, "label": label, "ratio": ratio, "seed": seed, "init_args": {"a": 1}, **more}
    return spec if value is None else {**spec, "metrics": {"acc": value}, "saved": saved, "seconds": seconds}


RUNS = [
    run("full data", None, 0, 0.9, seconds=9.0),
    run("full data", None, 1, 0.92, seconds=11.0),
    run("A", 0.5, 0, 0.8, saved=0.45, seconds=5.0, curve=[{"seconds": 1.0, "acc": 0.5}, {"seconds": 5.0, "acc": 0.8}]),
    run("A", 0.5, 1, 0.9, saved=0.55, seconds=6.0),
    run("A", 0.5, 2),
    run("B", 0.3, 0),
]
FAILED = {"A-0.5-2": "RuntimeError: oh", "B-0.3-0": "killed by signal 9"}


def test_table():
    rows = report.make_rows(RUNS, FAILED, "acc")
    lines = report.make_table(rows, "acc").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        "method",
        "asked to save",
        "runs",
        "acc",
        "saved",
        "wall time",
        "speed-up",
        "ideal",
        "efficiency",
    ]
    assert cells[2] == ["full data", "", "2", "0.9100 ± 0.0141", "0.0 %", "10.0 s", "1.00x", "1.00x", "100 %"]
    assert cells[3] == ["A", "50 %", "2 (1 failed)", "0.8500 ± 0.0707", "50.0 %", "5.5 s", "1.82x", "2.00x", "91 %"]
    assert cells[4] == ["B", "30 %", "0 (1 failed)", *["-"] * 6]
    assert len({len(line) for line in lines}) == 1


def test_one_run_has_no_spread():
    rows = report.make_rows([run("full data", None, 0, 0.5)], {}, "acc")
    assert math.isnan(report.mean_and_spread(rows[0].values)[1])
    assert "0.5000 |" in report.make_table(rows, "acc")


def test_csv_and_markdown(tmp_path):
    report.write_csv(RUNS, FAILED, "acc", tmp_path / "r.csv")
    lines = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [line["status"] for line in lines] == ["finished"] * 4 + ["RuntimeError: oh", "killed by signal 9"]
    assert [float(line["acc"]) for line in lines[:4]] == [0.9, 0.92, 0.8, 0.9]
    assert lines[2]["ratio"] == "0.5"
    report.write_markdown("| t |\n", FAILED, ["a note"], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert "a note" in text
    assert "- `B-0.3-0`: killed by signal 9" in text


def test_missing_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-prune\[plot\]'"):
        report.draw_plots(report.make_rows(RUNS, FAILED, "acc"), RUNS, "acc", tmp_path)


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    paths = report.draw_plots(report.make_rows(RUNS, FAILED, "acc"), RUNS, "acc", tmp_path)
    assert [path.name for path in paths] == ["metric_vs_saved.png", "metric_vs_time.png", "time_to_metric.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
