"""Rows, tables, csv and pictures from results made by hand."""

from __future__ import annotations

import csv
import math
import sys

import numpy as np
import pytest

from lightning_prune.compare import report
from lightning_prune.compare.plots import COLORS, MARKERS, styles
from lightning_prune.compare.result import Result

FEWER = "full data, 10 of 20 epochs"


def run(label, ratio, seed, value=None, saved=0.0, seconds=10.0, **more):
    name = f"{label}-{ratio}-{seed}"
    spec = {"name": name, "label": label, "ratio": ratio, "seed": seed, "init_args": {"a": 1}, **more}
    found = {"metrics": {"acc": value}, "saved": saved, "seconds": seconds, "cpu_seconds": seconds - 1, "threads": 2}
    return spec if value is None else spec | found


RUNS = [
    run("full data", None, 0, 0.9, seconds=9.0),
    run("full data", None, 1, 0.92, seconds=11.0),
    run(FEWER, None, 0, 0.7, saved=0.5, seconds=4.0),
    run("A", 0.5, 0, 0.8, saved=0.45, seconds=5.0, curve=[{"seconds": 1.0, "acc": 0.5}, {"seconds": 5.0, "acc": 0.8}]),
    run("A", 0.5, 1, 0.9, saved=0.55, seconds=6.0),
    run("A", 0.5, 2),
    run("B", 0.3, 0),
]
FAILED = {"A-0.5-2": "RuntimeError: oh", "B-0.3-0": "killed by signal 9"}
UNREACHABLE = {("C", 0.5): "Expected `--prune_ratios` that C can reach"}


def make_result(runs=RUNS, **kwargs):
    return Result(runs, "acc", 20, **{"failed": FAILED, "unreachable": UNREACHABLE, **kwargs})


def cells(table):
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables():
    answer, cost = (cells(table) for table in make_result().table.split("\n\n"))
    header = ["method", "asked to save", "saved", "runs", "acc", "against full data", "verdict", "against fewer epochs"]
    assert answer[0] == header
    more = "cannot tell yet: about"
    assert answer[2:] == [
        ["full data", "", "0.0 %", "2", "0.9100 ± 0.0141", "", "", ""],
        [FEWER, "", "50.0 %", "1", "0.7000", "-0.2000", f"{more} 2 more seeds", ""],
        ["A", "50 %", "50.0 %", "2 (1 failed)", "0.8500 ± 0.0707", "-0.0600", f"{more} 1 more seed",
         "+0.1000: cannot tell"],
        ["B", "30 %", "-", "0 (1 failed)", "-", "", f"{more} 3 more seeds", ""],
        ["C", "50 %", "-", "0", "-", "", "cannot be reached", ""],
    ]  # fmt: skip
    assert cost[0] == ["method", "asked to save", "wall time", "CPU time", "speed-up", "ideal", "efficiency"]
    assert cost[2:] == [
        ["full data", "", "10.0 s", "9.0 s", "1.00x", "1.00x", "100 %"],
        [FEWER, "", "4.0 s", "3.0 s", "2.50x", "2.00x", "disturbed"],
        ["A", "50 %", "5.5 s", "4.5 s", "1.82x", "2.00x", "91 %"],
    ]


def test_notes_say_what_is_there():
    notes = "\n".join(make_result(num_jobs=2).notes)
    assert f"Disturbed: {FEWER} took less time than what was saved allows" in notes
    assert "2 runs at a time, threads of each: 2" in notes
    assert "holds for all 3 rows at once (Bonferroni)" in notes
    assert "No worse: by no more than 0.005" in notes
    assert "C at 0.5: Expected `--prune_ratios` that C can reach" in notes
    assert "Disturbed" not in "\n".join(make_result(RUNS[:2]).notes)


def test_one_run_has_no_spread():
    result = make_result([run("full data", None, 0, 0.5)], failed={}, unreachable={})
    assert math.isnan(report.mean_and_spread(list(result.rows[0].values.values()))[1])
    assert "0.5000 |" in result.table


def test_a_run_that_ends_in_nan_is_no_verdict():
    runs = [run("full data", None, seed, 0.9 + 0.001 * seed) for seed in range(3)]
    runs += [run("A", 0.5, seed, 0.9 if seed else math.nan, saved=0.5) for seed in range(3)]
    assert "| cannot tell: not finite |" in make_result(runs).table


def test_pairs_are_of_the_same_seed():
    runs = [run("full data", None, seed, value) for seed, value in ((0, 0.5), (2, 0.7), (3, 0.8))]
    runs += [run("A", 0.5, seed, value) for seed, value in ((3, 0.9), (0, 0.4), (5, 0.1))]
    full, other = make_result(runs).rows[:2]
    assert other.better_than(full, lower=False) == pytest.approx([-0.1, 0.1])
    assert other.better_than(full, lower=True) == pytest.approx([0.1, -0.1])


def test_files(tmp_path):
    pytest.importorskip("matplotlib")
    names = ["results.csv", "results.md", "verdicts.png", "metric_vs_saved.png", "metric_vs_time.png"]
    paths = make_result().write(tmp_path)
    assert [path.name for path in paths] == [*names, "time_to_metric.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])
    lines = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert [line["status"] for line in lines] == ["finished"] * 5 + ["RuntimeError: oh", "killed by signal 9"]
    assert [float(line["acc"]) for line in lines[:5]] == [0.9, 0.92, 0.7, 0.8, 0.9]
    assert (lines[3]["ratio"], lines[3]["cpu_seconds"]) == ("0.5", "4.0")
    text = paths[1].read_text()
    assert "- `B-0.3-0`: killed by signal 9" in text
    assert "threads of each" in text


def test_frame_has_a_line_per_run():
    pytest.importorskip("pandas")
    frame = make_result().to_pandas()
    assert len(frame) == len(RUNS)
    assert frame.groupby("method")["acc"].mean()["full data"] == pytest.approx(0.91)
    assert frame["status"].tolist()[-1] == "killed by signal 9"


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.figure"])
def test_missing_matplotlib_says_what_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-prune\[plot\]'"):
        make_result().plot()


def test_missing_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-prune\[compare\]'"):
        make_result().to_pandas()


def test_pictures_say_what_they_show():
    pytest.importorskip("matplotlib")
    figure = make_result().plot()
    (axes,) = figure.axes
    assert "95 % intervals" in axes.get_title(loc="left")
    assert "the margin" in axes.get_title(loc="left")
    assert "right is better" in axes.get_xlabel()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [FEWER, "A, 50 % saved"]
    from lightning_prune.compare.plots import pictures

    found = pictures(make_result().rows, RUNS, "acc", lower=True)
    assert list(found) == ["metric_vs_saved.png", "metric_vs_time.png", "time_to_metric.png"]
    for figure in found.values():
        (axes,) = figure.axes
        assert axes.get_ylabel() == "acc (lower is better)"
        assert "n = 1 to 2" in axes.get_title(loc="left")
        assert "full data" in [text.get_text() for text in figure.legends[0].get_texts()]


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3).tolist(),
}


def lab(color, kind):
    """Return a colour in CIE Lab as such a reader sees it."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(BLIND[kind]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLIND)
def test_colour_blind_readers_can_tell_the_methods(kind):
    """Twelve methods have twelve markers; any two of the six colours differ by several just noticeable differences."""
    own = list(styles([f"method {i}" for i in range(12)]).values())
    assert len({style["marker"] for style in own}) == 12 <= len(MARKERS)
    assert "x" not in MARKERS  # the controls'
    seen = [lab(color, kind) for color in COLORS]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 7
    white = lab("#ffffff", kind)
    assert min(np.linalg.norm(color - white) for color in seen) > 30
