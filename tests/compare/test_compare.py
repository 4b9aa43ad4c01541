"""The command end to end on digits: results, resume after a kill, crashes, and every mistake it must refuse."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import lightning_prune
from lightning_prune.cli import main
from tests.compare import command

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parent.parent.parent
REPORT = {"class_path": "PruningReport", "init_args": {"path": "mine.md", "metric": "val_loss"}}
BASE = {
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "InfoBatch"}, {"class_path": "TQDMProgressBar"}, REPORT],
    },
    "model": {"class_path": "examples.digits.task.DigitsModel", "init_args": {"width": 2}},
    "data": {"class_path": "examples.digits.task.DigitsData", "init_args": {"batch_size": 120}},
}
METHODS = {
    "crash": {"class_path": "tests.compare.methods.Crashing"},
    "killed": {"class_path": "tests.compare.methods.Crashing", "init_args": {"how": "kill"}},
    "lost": {
        "class_path": "AlignPrune",
        "init_args": {"base": {"class_path": "InfoBatch"}, "window": 2, "reference": "val_f1"},
    },
    "OrderDP (0.6, 0.5)": {"class_path": "OrderDP", "init_args": {"explore_ratio": 0.6, "exploit_ratio": 0.5}},
}
FEWER = "full data, 2 of 3 epochs"
BOUND = lightning_prune.InfoBatch.set_by_ratio.bound
LONG = ["--methods", "RandomPruning", "--prune_ratios", "0.4", "--budget_epochs", "100000"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("methods.yaml").write_text(yaml.safe_dump(METHODS))
    command.warm()


@pytest.fixture
def start():
    """Starts the command in a process of its own, which ends with the test, as what it has started."""
    begun = []

    def begin(*args):
        begun.append(command.start(*args))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.join()
    for pid in runs_of("out"):
        os.kill(pid, signal.SIGKILL)


def compare(*args, code=None):
    arguments = ["compare", "--config", "base.yaml", "--output", "out", *args]
    if code is None:
        main(arguments)
        return
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == code


def refused(capsys, *args):
    """Return the one message that a mistake ends in."""
    compare(*args, code=2)
    err = capsys.readouterr().err
    message = err[err.index("error:") :]
    assert "Traceback" not in err
    assert len(message.splitlines()) <= 8
    return message


def results():
    return {path.parent.name: json.loads(path.read_text()) for path in Path("out").glob("runs/*/result.json")}


def tables(text):
    """Return the rows of each table, as cells, without header and rule."""
    found, lines = [], [line for line in text.splitlines() if line.startswith("|") or not line]
    for line in lines:
        if line.startswith("| method"):
            found.append([])
        elif line.strip("|-: "):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def wait_for(condition, process, seconds=900):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, Path("said.txt").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid):
    """Return whether a process runs; one that has ended, and nobody has waited for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def runs_of(folder):
    """Return the processes that train in a folder, by what they have open: their logs."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith(str(Path(folder).resolve())):
            found.append(int(fd.parts[2]))
    return [pid for pid in found if is_there(pid)]


def nobody_is_left():
    deadline = time.monotonic() + 300
    while runs_of("out"):
        assert time.monotonic() < deadline, "a run outlives the command"
        time.sleep(0.05)
    return True


def test_results_crashes_and_more_runs_later(capsys):
    """Cells that crash, or cannot be reached, are marked; the others are there."""
    one = ["--prune_ratios", "0.5", "--seeds", "1"]
    compare("--methods", "OrderDP,RandomPruning,InfoBatch", "methods.yaml", *one, "--jobs", "2", "--pilots", code=1)
    done = results()
    names = ("full-data", FEWER.replace(" ", "-"), "OrderDP-0.5", "OrderDP-(0.6,-0.5)", "RandomPruning-0.5")
    assert {*done} == {f"{name}-seed-0" for name in names} | {"pilot-of-InfoBatch-0.5-seed-0"}
    for name, result in done.items():
        full, fewer, pilot = name == "full-data-seed-0", name.startswith("full-data,"), name.startswith("pilot")
        saved = 0 if full else 1 / 3 if fewer else 0.7 if "(" in name else 0.5
        assert pilot or result["saved"] == pytest.approx(saved, abs=0.02)
        assert result["seconds"] > 0
        assert result["cpu_seconds"] > 0
        assert result["threads"] == 1
        assert 0 < result["metrics"]["val_accuracy"] <= 1
        assert [point["epoch"] for point in result["curve"]] == ([1, 2] if fewer else [1, 2, 3])
        spent = [point["cpu_seconds"] for point in result["curve"]]
        assert 0 < spent[0] < spent[-1] <= result["cpu_seconds"]
        assert not full or not any(key.startswith("prune/") for key in result["metrics"])
    said = capsys.readouterr()
    answer, cost = tables(said.out)
    verdicts = {row[0]: row[6] for row in answer}
    assert verdicts["full data"] == ""
    assert verdicts["InfoBatch"] == "cannot be reached"
    assert verdicts["RandomPruning"] == "cannot tell yet: about 2 more seeds"
    assert {*verdicts} == {"full data", FEWER, "OrderDP", "OrderDP (0.6, 0.5)", "RandomPruning", *METHODS, "InfoBatch"}
    assert [row[0] for row in answer[:2]] == ["full data", FEWER]
    assert {row[0] for row in cost} == {"full data", FEWER, "OrderDP", "OrderDP (0.6, 0.5)", "RandomPruning"}
    assert next(row[7] for row in answer if row[0] == "OrderDP").endswith(": cannot tell")  # against fewer epochs
    assert "InfoBatch at 0.5: Expected `--prune_ratios` that InfoBatch can reach, at most 0." in said.out
    assert "failed: crash-seed-0: RuntimeError: no more samples for you" in said.out
    assert "failed: killed-seed-0: killed by signal 9" in said.out
    assert "failed: pilot-of-lost-0.5-seed-0: " in said.out
    assert "lost at 0.5: not run, since a pilot run failed" in said.out
    assert "2 runs at a time, threads of each: 1" in said.out
    assert "epoch 0/3; " in said.err  # the bar
    lines = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [line["status"] == "finished" for line in lines].count(True) == 5
    assert "| crash" in Path("out/results.md").read_text()
    assert all(Path("out", name).stat().st_size > 10_000 for name in ("verdicts.png", "metric_vs_saved.png"))
    assert "out/report.html" in said.out
    page = Path("out/report.html").read_text()
    data = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert [run["name"] for run in data["runs"]] == ["OrderDP at 0.5", "RandomPruning at 0.5", "OrderDP (0.6, 0.5)"]
    assert "3 runs side by side" in page
    assert len(data["comparison"]["ids"]) == 24
    assert page.count("<td>val_loss ") == 3  # as the base config's report says
    records = {name for name, result in done.items() if "record" in result}
    assert records == {"OrderDP-0.5-seed-0", "OrderDP-(0.6,-0.5)-seed-0", "RandomPruning-0.5-seed-0"}
    assert not Path("mine.md").exists()  # every run would write it
    saved = yaml.safe_load(Path("out/config.yaml").read_text())
    assert saved["trainer"]["callbacks"] == []  # a method of the base config is not part of the comparison
    assert nobody_is_left()

    # Again, with more seeds: nothing is repeated, the table has all of it.
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("runs/*/result.json")}
    compare("--methods", "RandomPruning", "--prune_ratios", "0.5", "--seeds", "2")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    answer = tables(capsys.readouterr().out)[0]
    assert [row[3] for row in answer] == ["2", "2", "2", "1", "1"]
    assert results()["full-data-seed-0"]["metrics"] != results()["full-data-seed-1"]["metrics"]

    # A metric that is not logged, and other settings of a method of the same name.
    message = refused(capsys, "--methods", "OrderDP", "--prune_ratios", "0.5", "--metric", "val_f1")
    assert "`--metric` to be one that the training logs, of ['val_accuracy', 'val_loss'], but got 'val_f1'" in message
    assert "differ: trainer.max_epochs is 3 there and 4 here" in refused(
        capsys, "--methods", "OrderDP", "--prune_ratios", "0.5", "--trainer.max_epochs=4"
    )
    fixed = {"class_path": "OrderDP", "init_args": {"explore_ratio": 0.9, "exploit_ratio": 0.5}}
    Path("other.yaml").write_text(yaml.safe_dump({"OrderDP (0.6, 0.5)": fixed}))
    message = refused(capsys, "--methods", "other.yaml", "--seeds", "1")
    assert "init_args of OrderDP (0.6, 0.5) is {'exploit_ratio': 0.5, 'explore_ratio': 0.6} there" in message


def test_an_interrupt_ends_the_runs_and_keeps_no_half_of_one(start):
    """As Ctrl-C does; in new interpreters, as strategies of several processes need them."""
    process = start("compare", "--config", "base.yaml", "--output", "out", *LONG, "--trainer.accelerator=auto")
    wait_for(lambda: Path("out/runs/full-data-seed-0/epoch").exists(), process)
    assert len(runs_of("out")) == 1
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    assert process.exitcode == 130
    message = Path("said.txt").read_text()
    assert "Interrupted. Finished runs are kept: give the same command again to go on." in message
    assert "Traceback" not in message
    assert not results()
    assert not runs_of("out")


def test_nobody_outlives_a_kill_and_the_command_goes_on_where_it_was(start, capsys):
    process = start("compare", "--config", "base.yaml", "--output", "out", *LONG)
    wait_for(lambda: Path("out/runs/full-data-seed-0/epoch").exists(), process)
    assert len(runs_of("out")) == 1
    message = refused(capsys, *LONG)
    assert "to be a folder that no other command uses, but one is running in 'out'" in message
    process.kill()
    process.join()
    assert nobody_is_left()

    args = ["--methods", "RandomPruning", "--prune_ratios", "0.4", "--seeds", "2"]
    half = Path("out/runs/full-data-seed-0")
    (half / ".spec.json.0.tmp").write_text("{")  # as if killed while it was written
    compare(*args, "--no_control")
    assert len(results()) == 4
    assert not list(Path("out").glob("**/*.tmp"))
    assert [row[3] for row in tables(capsys.readouterr().out)[0]] == ["2", "2"]


def test_measured_reach_is_told_before_the_runs(capsys):
    args = ["--methods", "RePB,InfoBatch", "--prune_ratios", "0.7", "--seeds", "1"]
    assert "that RePB can reach, at most 0.633, but got 0.7" in refused(capsys, *args)
    assert not results()
    assert "that RePB can reach, at most 0.633, but got 0.7" in refused(capsys, *args, "--pilots")
    assert list(results()) == ["pilot-of-InfoBatch-0.5-seed-0"]


def test_methods_of_somebody_else(capsys):
    """One says how a ratio sets it; the other only has a `prune_ratio`, and what that saves is measured."""
    methods = ["--methods", "tests.compare.methods.Halved,tests.compare.methods.Keeping", "--seeds", "1"]
    compare(*methods, "--prune_ratios", "0.3", "--no_control")
    done = results()
    pilots = {f"pilot-of-Halved-{drop}-seed-0" for drop in ("0", "0.5", "0.9")}
    assert {*done} == {"full-data-seed-0", "Halved-0.3-seed-0", "Keeping-0.3-seed-0"} | pilots
    for name, argument in (("Halved", {"prune_ratio": 0.6}), ("Keeping", {"keep": 0.7})):
        result = done[f"{name}-0.3-seed-0"]
        assert result["saved"] == pytest.approx(0.3, abs=0.005)
        assert result["init_args"] == pytest.approx(argument, abs=0.005)
    assert [row[0] for row in tables(capsys.readouterr().out)[0]] == ["full data", "Halved", "Keeping"]

    message = refused(capsys, *methods, "--prune_ratios", "0.7", "--no_control")
    assert "that Keeping can reach, at most 0.600, but got 0.7. It keeps 40 %." in message
    methods[1] = "tests.compare.methods.Halved"
    message = refused(capsys, *methods, "--prune_ratios", "0.7", "--no_control")
    assert "that Halved can reach, at most 0.45" in message
    assert "(measured by pilot runs), but got 0.7. Its class does not say how a ratio sets it" in message
    assert "`set_by_ratio = lightning_prune.core.ratio.RatioSetting(...)`" in message


def test_dry_run_checks_and_trains_nothing(capsys):
    args = ["--methods", "RandomPruning,RePB,InfoBatch", "--prune_ratios", "0.3,0.7", "--dry_run"]
    compare(*args, "--until_decided")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("21 runs, of which 0 are there; the others take about ")
    assert said[0].endswith(", and more seeds up to 20.")
    assert said[1:] == [
        "metric: val_accuracy",
        "full data: seeds 0 to 2",
        "full data, 2 of 3 epochs: seeds 0 to 2",
        "full data, 1 of 3 epochs: seeds 0 to 2",
        "RandomPruning at 0.3: seeds 0 to 2; reaches 0.990",
        "RandomPruning at 0.7: seeds 0 to 2; reaches 0.990",
        "RePB at 0.3: seeds 0 to 2; reaches 0.633",
        "RePB at 0.7: not run. Expected `--prune_ratios` that RePB can reach, at most 0.633, but got 0.7. Its first "
        "epoch is full.",
        "InfoBatch at 0.3: seeds 0 to 2; reaches 0.300, if its losses allow it",
        "InfoBatch at 0.7: not run. Expected `--prune_ratios` that InfoBatch can reach, at most 0.300, but got 0.7. "
        + BOUND,
    ]
    compare(*args, "--pilots")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("25 runs, ")
    assert "InfoBatch at 0.7: seeds 0 to 2; what it reaches is measured by 1 pilot runs" in said
    assert not results()
    assert "one that the training logs, of ['val_accuracy', 'val_loss'], but got 'val_f1'" in refused(
        capsys, *args, "--metric", "val_f1"
    )


def test_a_training_that_does_not_run_is_told_before_the_first(capsys):
    message = refused(capsys, "--methods", "OrderDP", "--prune_ratios", "0.5", "--model.lr=-1.0")
    assert "Expected a training that runs, but a trial of a few batches ended in ValueError: Invalid" in message
    assert not results()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (
            ["--methods", "InfoBach"],
            "Expected each of `--methods` to be one of AlignPrune, BatchLossScore, Budget, DivBS, EpsilonGreedy, IES",
        ),
        (["--methods", "RePB", "--prune_ratios", "0.9"], "RePB can reach, at most 0.633, but got 0.9"),
        (["--methods", "RePB", "--prune_ratios", "30"], "`--prune_ratios` to be numbers in (0, 1), but got '30'"),
        (["--methods", "RePB"], "Expected `--prune_ratios`, shares of the sample-steps to save"),
        (["--methods", "RePB,RePB", "--prune_ratios", "0.3"], "each method once in `--methods`"),
        (["--methods", "IES"], "Expected more than the name of IES in `--methods`: none of its arguments is a ratio"),
        (["--methods", "AlignPrune"], "`AlignPrune: {class_path: AlignPrune, init_args: {base: {class_path: Info"),
        (
            ["--methods", "tests.compare.methods.Sharp"],
            "of Sharp in `--methods`: `sharpness` must be given. Give it in a yaml file of methods, as "
            "`Sharp: {class_path: tests.compare.methods.Sharp, init_args: {sharpness: ...}}`",
        ),
        (
            ["--methods", "tests.compare.methods.Halved"],
            "Expected `--prune_ratios`, shares of the sample-steps to save",
        ),
        (
            ["--methods", "tests.compare.Mine"],
            "or a yaml file of methods, but got 'tests.compare.Mine': module 'tests.comp",
        ),
        (["--methods", "torch.nn.Linear"], "the import path of your own `PruningCallback`, or a yaml file of methods"),
        (["--methods", "wrapped.yaml", "--prune_ratios", "0.3"], "Expected a `base` that ranks by `registry.scores`"),
        (["--methods", "baseless.yaml"], "arguments are required: base"),
        (["--methods", "listed.yaml"], "`base`:\n  Not a valid subclass of PruningCallback, but got ['InfoBatch']"),
        (["--methods", "nowhere.yaml"], "readable yaml file, but got 'nowhere.yaml'"),
        (["--methods", "list.yaml"], "'list.yaml' to hold `label: {class_path: ..., init_args: {...}}`"),
        (["--methods", "bad.yaml"], "Expected the class of 'x' to be a `PruningCallback`, but got 'torch.nn.Linear'"),
        (["--methods", "wrong.yaml", "--prune_ratios", "0.3"], "prune_ration"),
        (["--methods", "range.yaml"], "Expected `prune_ratio` to be a number in [0, 1), but got 7."),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--seeds", "0"], "`--seeds` to be an int >= 1, but got 0"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--max_seeds", "2"], "`--max_seeds` to be an int >= 3"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--margin", "-1"], "`--margin` to be a number >= 0"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--seed", "3"], "but got --seed. Did you mean --seeds?"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--ratio=3"], "Did you mean --prune_ratios?"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--trainr.max_epochs=3"], "Did you mean --trainer?"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--trainer.max_steps=9"], "limited by `trainer.max_epochs`"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--trainer.max_epox=9"], "max_epox"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--output", "."], "'.' holds other files"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--output", "base.yaml"], "to be a folder that can be written"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--output", "held"], "no other command uses, but one is runn"),
        (["--prune_ratios", "0.3"], "the following arguments are required: --methods"),
    ],
)
def test_mistakes_end_in_one_message(args, match, capsys):
    Path("list.yaml").write_text("x: [InfoBatch]")
    Path("baseless.yaml").write_text("x: {class_path: AlignPrune}")
    Path("listed.yaml").write_text("x: {class_path: BatchLossScore, init_args: {base: [InfoBatch]}}")
    Path("wrapped.yaml").write_text("x: {class_path: AlignPrune, init_args: {base: {class_path: RandomPruning}}}")
    Path("bad.yaml").write_text("x: {class_path: torch.nn.Linear}")
    Path("wrong.yaml").write_text("x: {class_path: InfoBatch, init_args: {prune_ration: 0.5}}")
    Path("range.yaml").write_text("x: {class_path: InfoBatch, init_args: {prune_ratio: 7.0}}")
    Path("held").mkdir()
    with FileLock("held/.lock"):
        assert match in refused(capsys, *args)
    assert not results()


def test_a_refused_command_does_not_bind_its_folder(capsys):
    assert "at most 0.633" in refused(capsys, "--methods", "RePB", "--prune_ratios", "0.9")
    assert "at most 0.712" in refused(capsys, "--methods", "RePB", "--prune_ratios", "0.9", "--trainer.max_epochs=4")
