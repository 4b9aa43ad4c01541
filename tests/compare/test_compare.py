"""The command end to end on digits: results, resume after a kill, crashes, and every mistake it must refuse."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_prune.cli import main
from lightning_prune.compare.main import Comparison
from lightning_prune.compare.methods import RefusedError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(400)]

ROOT = Path(__file__).parent.parent.parent
BASE = {
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "InfoBatch"}, {"class_path": "TQDMProgressBar"}],
    },
    "model": {"class_path": "examples.digits.task.DigitsModel", "init_args": {"width": 4}},
    "data": {"class_path": "examples.digits.task.DigitsData"},
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


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("methods.yaml").write_text(yaml.safe_dump(METHODS))


def compare(*args, code=None):
    command = ["compare", "--config", "base.yaml", "--output", "out", *args]
    if code is None:
        main(command)
        return
    with pytest.raises(SystemExit) as error:
        main(command)
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


def test_results_crashes_and_more_runs_later(capsys):
    compare(
        "--methods",
        "OrderDP,RandomPruning",
        "methods.yaml",
        "--prune_ratios",
        "0.5",
        "--seeds",
        "2",
        "--jobs",
        "2",
        code=1,
    )
    done = results()
    assert sorted(done) == sorted(
        [
            f"{name}-seed-{seed}"
            for name in ("full-data", "OrderDP-0.5", "OrderDP-(0.6,-0.5)", "RandomPruning-0.5")
            for seed in (0, 1)
        ]
    )
    for name, result in done.items():
        full = name.startswith("full")
        assert result["saved"] == pytest.approx(0 if full else 0.7 if "(" in name else 0.5, abs=0.15)
        assert result["seconds"] > 0
        assert 0 < result["metrics"]["val_accuracy"] <= 1
        assert [point["epoch"] for point in result["curve"]] == [1, 2, 3]
        assert not full or not any(key.startswith("prune/") for key in result["metrics"])
    assert done["full-data-seed-0"]["metrics"] != done["full-data-seed-1"]["metrics"]
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert "failed: crash-seed-0: RuntimeError: no more samples for you" in out
    assert "failed: killed-seed-1: killed by signal 9" in out
    assert "failed: pilot-of-lost-0.5-seed-0: " in out
    assert "failed: lost-0.5-seed-1: not run, since a pilot run failed" in out
    lines = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [line["status"] == "finished" for line in lines].count(True) == 8
    assert "| crash" in Path("out/results.md").read_text()
    saved = yaml.safe_load(Path("out/config.yaml").read_text())
    assert saved["trainer"]["callbacks"] == []  # a method of the base config is not part of the comparison

    # Again, with one method more: nothing is repeated, and the table has all of it.
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("runs/*/result.json")}
    compare("--methods", "RandomPruning", "--prune_ratios", "0.5", "0.3", "--seeds", "1")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[3].strip() for line in table[2:]] == ["2", "1", "2", "2", "2"]
    assert len(table) == 2 + 5
    assert len(results()) == 9

    # A metric that is not logged, and other settings of a method of the same name.
    message = refused(capsys, "--methods", "OrderDP", "--prune_ratios", "0.5", "--metric", "val_f1")
    assert (
        "`--metric` to be one that the training logs, of ['prune/" in message
        or "['val_accuracy', 'val_loss']" in message
    )
    assert "but got 'val_f1'" in message
    Path("other.yaml").write_text(
        yaml.safe_dump({"OrderDP (0.6, 0.5)": {"class_path": "OrderDP", "init_args": {"explore_ratio": 0.7}}})
    )
    message = refused(capsys, "--methods", "other.yaml", "--prune_ratios", "0.5", "--trainer.max_epochs=4")
    assert "'out' is of another one: trainer.max_epochs is 3 there and 4 here" in message
    fixed = {"class_path": "OrderDP", "init_args": {"explore_ratio": 0.9, "exploit_ratio": 0.5}}
    Path("other.yaml").write_text(yaml.safe_dump({"OrderDP (0.6, 0.5)": fixed}))
    message = refused(capsys, "--methods", "other.yaml", "--seeds", "1")
    assert "init_args of OrderDP (0.6, 0.5) is {'exploit_ratio': 0.5, 'explore_ratio': 0.6} there" in message


def start(*args):
    command = [
        sys.executable,
        "-m",
        "lightning_prune.cli",
        "compare",
        "--config",
        "base.yaml",
        "--output",
        "out",
        *args,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_and_keeps_no_half_of_one():
    process = start("--methods", "RandomPruning", "--prune_ratios", "0.4", "--budget_epochs", "100000")
    log, deadline = Path("out/runs/full-data-seed-0/log.txt"), time.monotonic() + 200
    while not (log.exists() and "Loading `train_dataloader`" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    message = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 130
    assert "Interrupted. Finished runs are kept: give the same command again to go on." in message
    assert "Traceback" not in message
    assert not results()
    time.sleep(3)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left


@pytest.mark.slow
def test_resume_after_a_kill(capsys):
    args = ["--methods", "RandomPruning", "--prune_ratios", "0.4", "--seeds", "4"]
    process = start(*args)
    deadline = time.monotonic() + 200
    while not results():
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # the run that was going on may still end, and is kept then
    kept = {path: path.read_text() for path in Path("out").glob("runs/*/result.json")}
    assert 1 <= len(kept) < 8
    names = [f"{name}-seed-{seed}" for name in ("full-data", "RandomPruning-0.4") for seed in range(4)]
    unfinished = next(path for path in map(Path("out/runs").joinpath, names) if not (path / "result.json").exists())
    unfinished.mkdir(exist_ok=True)
    (unfinished / ".spec.json.0.tmp").write_text("{")  # as if killed while it was written
    compare(*args)
    assert all(path.read_text() == text for path, text in kept.items())
    assert len(results()) == 8
    assert not list(Path("out").glob("**/*.tmp"))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[3].strip() for line in table[2:]] == ["4", "4"]


def test_measured_reach_is_told_before_the_runs(capsys):
    message = refused(capsys, "--methods", "RandomPruning,InfoBatch", "--prune_ratios", "0.7", "--seeds", "1")
    assert "that InfoBatch can reach, at most 0." in message
    assert "(measured by pilot runs), but got 0.7" in message
    assert list(results()) == ["pilot-of-InfoBatch-0.5-seed-0"]


def test_methods_of_somebody_else(capsys):
    """One says how a ratio sets it; the other only has a `prune_ratio`, and what that saves is measured."""
    methods = ["--methods", "tests.compare.methods.Halved,tests.compare.methods.Keeping", "--seeds", "1"]
    compare(*methods, "--prune_ratios", "0.3")
    done = results()
    pilots = {f"pilot-of-Halved-{drop}-seed-0" for drop in ("0", "0.5", "0.9")}
    assert {*done} == {"full-data-seed-0", "Halved-0.3-seed-0", "Keeping-0.3-seed-0"} | pilots
    for name, argument in (("Halved", {"prune_ratio": 0.6}), ("Keeping", {"keep": 0.7})):
        result = done[f"{name}-0.3-seed-0"]
        assert result["saved"] == pytest.approx(0.3, abs=0.005)
        assert result["init_args"] == pytest.approx(argument, abs=0.005)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["full data", "Halved", "Keeping"]

    message = refused(capsys, *methods, "--prune_ratios", "0.7")
    assert "that Keeping can reach, at most 0.600, but got 0.7. It keeps 40 %." in message
    message = refused(capsys, *methods[:1], "tests.compare.methods.Halved", "--prune_ratios", "0.7", "--seeds", "1")
    assert "Expected `--prune_ratios` that Halved can reach, at most 0.45" in message
    assert "(measured by pilot runs), but got 0.7. Its class does not say how a ratio sets it" in message
    assert "`set_by_ratio = lightning_prune.core.ratio.RatioSetting(...)`" in message


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (
            ["--methods", "InfoBach"],
            "Expected each of `--methods` to be one of DivBS, EpsilonGreedy, ImportanceSampling, InfoBatch, OrderDP, R",
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
        (["--methods", "listed.yaml"], 'Parser key "base":'),
        (["--methods", "nowhere.yaml"], "readable yaml file, but got 'nowhere.yaml'"),
        (["--methods", "list.yaml"], "'list.yaml' to hold `label: {class_path: ..., init_args: {...}}`"),
        (["--methods", "bad.yaml"], "Expected the class of 'x' to be a `PruningCallback`, but got 'torch.nn.Linear'"),
        (["--methods", "wrong.yaml", "--prune_ratios", "0.3"], "prune_ration"),
        (["--methods", "range.yaml"], "Expected `prune_ratio` to be a number in [0, 1), but got 7."),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--seeds", "0"], "`--seeds` to be an int >= 1, but got 0"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--trainer.max_steps=9"], "limited by `trainer.max_epochs`"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--trainer.max_epox=9"], "max_epox"),
        (["--methods", "RePB", "--prune_ratios", "0.3", "--output", "."], "'.' holds other files"),
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
    assert match in refused(capsys, *args)
    assert not results()


def test_a_refused_command_does_not_bind_its_folder(capsys):
    assert "at most 0.633" in refused(capsys, "--methods", "RePB", "--prune_ratios", "0.9")
    assert "at most 0.712" in refused(capsys, "--methods", "RePB", "--prune_ratios", "0.9", "--trainer.max_epochs=4")


def test_metric_must_be_logged(capsys):
    message = refused(
        capsys, "--methods", "RandomPruning", "--prune_ratios", "0.4", "--metric", "val_f1", "--seeds", "1"
    )
    assert (
        "Expected `--metric` to be one that the training logs, of ['val_accuracy', 'val_loss'], but got 'val_f1'"
        in message
    )


def test_default_metric_is_an_accuracy_of_the_trainings_own(tmp_path):
    comparison = Comparison(tmp_path, {"max_epochs": 1, "accelerator": "cpu", "devices": 1}, 1, None)
    comparison.check_metric({"metrics": {"prune/jaccard": 1.0, "val_acc": 0.5, "val_loss": 1.0}})
    assert comparison.metric == "val_acc"
    comparison.metric = None
    with pytest.raises(RefusedError, match="none is named, and none has 'acc' in its name"):
        comparison.check_metric({"metrics": {"prune/jaccard": 1.0, "val_loss": 1.0}})


def test_budget_is_the_number_of_epochs(capsys):
    compare("--methods", "RandomPruning", "--prune_ratios", "0.4", "--budget_epochs", "1", "--seeds", "1")
    assert {len(result["curve"]) for result in results().values()} == {1}
