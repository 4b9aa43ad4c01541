"""Runs made elsewhere: what is told of them, and that none outlives the command."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from lightning_prune.cli import main
from lightning_prune.compare import launchers
from lightning_prune.compare.launchers import Launched, make_runner
from lightning_prune.compare.methods import RefusedError
from tests.compare.test_compare import BASE
from tests.processes import ROOT

MADE_UP = """
import json, pathlib, sys
spec = json.loads(pathlib.Path(sys.argv[1]).read_text())
if spec["label"] == "crash":
    raise RuntimeError("oh")
if spec["label"] == "long":
    import time
    pathlib.Path(spec["folder"], "begun").touch()
    time.sleep(3600)
found = {"metrics": {"val_acc": 0.9 - spec["seed"] / 100}, "saved": spec["ratio"] or 0.0, "seconds": 2.0}
found |= {"cpu_seconds": 2.0, "threads": 1, "curve": [], "epoch_seconds": 1.0, "batches": 8, "val_batches": 1}
pathlib.Path(spec["result"]).write_text(json.dumps(spec | found))
"""


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, tmp_path):
    """Each run is a program of a few lines, which need not import torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launchers, "command_of", lambda path: [sys.executable, "-c", MADE_UP, str(path)])


def specs_of(*labels):
    made = []
    for label in labels:
        folder = Path("out", "runs", label)
        made.append({"label": label, "seed": 0, "ratio": None, "folder": str(folder)})
        made[-1]["result"] = str(folder / "result.json")
    return made


def run_all(runner, specs):
    ended = {}
    runner.run(specs, lambda spec, reason: ended.update({spec["label"]: reason}), lambda _: None)
    return ended


def test_each_run_ends_with_its_result_or_its_reason(tmp_path):
    class Refuses(ThreadPoolExecutor):
        """Loses the job of one run, as a cluster may."""

        def submit(self, function, command, *args):
            if "/lost/" in command[-1]:
                return super().submit(lambda: [][0])
            return super().submit(function, command, *args)

    with Refuses(2) as executor:
        ended = run_all(Launched(executor, 2, tmp_path / "out"), specs_of("a", "crash", "b", "lost"))
    assert ended["a"] is ended["b"] is None
    assert ended["crash"].startswith("RuntimeError: oh (exit code 1, see out/runs/crash/log.txt")
    assert ended["lost"] == "IndexError: list index out of range"
    assert not [*(tmp_path / "out").glob("pulse-*")]


@pytest.mark.parametrize("how", ["interrupted", "gone"])
def test_no_run_outlives_the_command(how, tmp_path, monkeypatch):
    def interrupt(_):
        if Path("out/runs/long/begun").exists():
            if how == "gone":  # killed: its last sign of life stays
                monkeypatch.setattr(launchers, "PULSE_PATIENCE", 0.0)
                monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)
            raise KeyboardInterrupt

    executor = ThreadPoolExecutor(1)
    jobs = []
    submit = executor.submit
    executor.submit = lambda *args: jobs.append(submit(*args)) or jobs[-1]
    with pytest.raises(KeyboardInterrupt):
        Launched(executor, 1, tmp_path / "out").run(specs_of("long"), lambda *_: None, interrupt)
    began = time.monotonic()
    assert jobs[0].result(60) < 0  # by a signal
    assert time.monotonic() - began < 30
    executor.shutdown()


def test_no_more_runs_at_a_time_than_jobs(tmp_path):
    jobs = []

    class Counting(ThreadPoolExecutor):
        def submit(self, *args):
            assert sum(not job.done() for job in jobs) < 2
            jobs.append(super().submit(*args))
            return jobs[-1]

    with Counting(8) as executor:
        run_all(Launched(executor, 2, tmp_path / "out"), specs_of(*"abcd"))
    assert len(jobs) == 4


@pytest.mark.filterwarnings("ignore")
def test_the_command_compares_by_an_executor(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    arguments = ["--methods", "RandomPruning", "--prune_ratios", "0.4", "--seeds", "2", "--no_control"]
    where = [
        "--launcher",
        "concurrent.futures.ThreadPoolExecutor",
        "--launcher_args",
        "{max_workers: 2}",
        "--jobs",
        "2",
    ]
    main(["compare", "--config", "base.yaml", "--output", "out", *arguments, *where])
    assert "RandomPruning" in capsys.readouterr().out
    made = [json.loads(path.read_text())["label"] for path in Path("out").glob("runs/*/result.json")]
    assert sorted(made) == ["RandomPruning"] * 2 + ["full data"] * 2


@pytest.mark.parametrize(
    ("launcher", "arguments", "told"),
    [
        ("slurm", {}, "Expected `--launcher` to be local, ray, submitit, or the import path of an executor.*'slurm'"),
        ("pathlib.Path", {}, "Expected `--launcher` to name a class that has `submit`, but got 'pathlib.Path'"),
        ("local", {"a": 1}, "Expected no `--launcher_args` for the local launcher, but got {'a': 1}"),
        ("concurrent.futures.ThreadPoolExecutor", {"workers": 1}, "that concurrent.futures.ThreadPoolExecutor takes"),
    ],
)
def test_mistakes_are_refused(launcher, arguments, told, tmp_path):
    with pytest.raises(RefusedError, match=told):
        make_runner(launcher, arguments, 1, tmp_path, fresh=True)


@pytest.mark.parametrize("name", ["ray", "submitit"])
def test_clusters(name, tmp_path, monkeypatch):
    """Where they are not installed, it is said how; else a run goes there."""
    if importlib.util.find_spec(name) is None:
        with pytest.raises(RefusedError, match=f"Expected `--launcher {name}` to be installed.*pip install {name}"):
            make_runner(name, {}, 1, tmp_path, fresh=True)
        return
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
    options = {"cluster": "local"} if name == "submitit" else {"num_cpus": 1}
    ended = run_all(make_runner(name, options, 1, tmp_path / "out", fresh=True), specs_of("a"))
    if name == "ray":
        pytest.importorskip("ray").shutdown()
    assert ended == {"a": None}
