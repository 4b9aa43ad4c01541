"""The command: what is to be run, what has been run already, and what came out."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, final

import yaml
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm  # type: ignore[import-untyped]

import lightning_prune
from lightning_prune.cli import PruneCLI
from lightning_prune.compare import report
from lightning_prune.compare.jobs import run_all
from lightning_prune.compare.methods import FULL, PILOT, Method, RefusedError, known_methods, read_methods
from lightning_prune.compare.run import callback_argument
from lightning_prune.core.export import atomic_write
from lightning_prune.core.ratio import UnreachableError, known_curve, measured_curve, solve


@final
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}\nFor all arguments: {self.prog} --help\n")
        raise SystemExit(2)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own arguments; all others are those of ``lightning-prune fit``."""
    parser = _Parser(
        "lightning-prune compare",
        description="Run the same training with several methods, ratios and seeds, and compare. Runs that have "
        "finished are kept: repeat the command to go on, or with more methods, ratios or seeds. Any argument of "
        "`lightning-prune fit` is taken too, such as --trainer.max_epochs=20.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, help="yaml of the training, as for `fit`")
    parser.add_argument(
        "--methods",
        nargs="+",
        required=True,
        metavar="METHOD",
        help=f"of {', '.join(known_methods())}, import paths of your own, or yaml files of `label: {{class_path: ..., "
        "init_args: ...}}`; a method that does not give its ratio itself is set to each of --prune_ratios, others are "
        "run as they are",
    )
    parser.add_argument("--prune_ratios", nargs="+", default=[], metavar="RATIO", help="shares of sample-steps to save")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument("--budget_epochs", type=int, help="epochs of each run, instead of trainer.max_epochs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default: 1)")
    parser.add_argument("--metric", help="logged metric to compare, as it is at the end (default: the first accuracy)")
    parser.add_argument("--output", help="folder of runs and results (default: results/NAME_OF_CONFIG)")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-prune compare --config FILE --methods A,B --prune_ratios 0.3,0.5``.

    Args:
        args: The arguments after ``compare``. None: those of the command line.

    Raises:
        SystemExit: With code 2 for a mistake in the arguments, with 1 if a run failed, with 130 if interrupted.
    """
    sys.path.insert(0, os.getcwd())  # so that a config can name the user's own modules
    parser = make_parser()
    options, overrides = parser.parse_known_args(sys.argv[2:] if args is None else args)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running processes are ended
    try:
        num_failed = _compare(options, overrides)
    except RefusedError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Finished runs are kept: give the same command again to go on.\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if num_failed:
        raise SystemExit(1)


def _compare(options: argparse.Namespace, overrides: list[str]) -> int:
    """Do what the arguments say; return the number of failed runs."""
    for name, low in (("seeds", 1), ("jobs", 1), ("budget_epochs", 1)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise RefusedError(f"Expected `--{name}` to be an int >= {low}, but got {value}.")
    ratios = [_ratio(text) for text in _split(options.prune_ratios)]
    methods = [method for text in _split(options.methods) for method in read_methods(text)]
    if doubled := {m.label for m in methods if sum(n.label == m.label for n in methods) > 1}:
        raise RefusedError(f"Expected each method once in `--methods`, but got {sorted(doubled)} more than once.")
    if options.budget_epochs is not None:
        overrides = [*overrides, f"--trainer.max_epochs={options.budget_epochs}"]
    if not ratios and any(method.setting for method in methods):
        raise RefusedError(
            "Expected `--prune_ratios`, shares of the sample-steps to save, such as 0.3,0.5, but got none."
        )
    config = _resolve(options.config, overrides, methods)
    folder = Path(options.output or Path("results") / Path(options.config[0]).stem)
    _open_folder(folder, config)
    comparison = Comparison(folder, config["trainer"], options.jobs, options.metric)
    comparison.run(methods, ratios, options.seeds)
    comparison.report()
    return len(comparison.failed)


def _split(texts: Sequence[str]) -> list[str]:
    return [part for text in texts for part in text.split(",") if part]


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        raise RefusedError(f"Expected `--prune_ratios` to be numbers in (0, 1), but got {text!r}.")
    return ratio


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling what devices it found, once for each method, and that it got arguments."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _resolve(paths: list[str], overrides: list[str], methods: list[Method]) -> dict[str, Any]:
    """Return the whole configuration of the training, without pruning methods and progress bars.

    A mistake in it, or in the arguments of a method, ends the program as in ``lightning-prune fit``.
    """
    args = ["fit", *(f"--config={path}" for path in paths), *overrides]
    cannot_fail = [Method(name, f"lightning_prune.{name}") for name in known_methods()]
    with _quiet():
        cli = PruneCLI(args=args, save_config_callback=None, check_only=True)
        for method in methods:
            if method not in cannot_fail:
                own = callback_argument(method.class_path, method.example())
                PruneCLI(args=[*args, own], save_config_callback=None, check_only=True)
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))["fit"]
    trainer = config["trainer"]
    if not isinstance(trainer["max_epochs"], int) or trainer["max_epochs"] < 1 or trainer["max_steps"] != -1:
        raise RefusedError(
            "Expected a training limited by `trainer.max_epochs`, since pruned epochs are shorter, but got "
            f"max_epochs={trainer['max_epochs']} and max_steps={trainer['max_steps']}. Pass `--budget_epochs`."
        )
    callbacks = trainer["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    left_out = (lightning_prune.PruningCallback, ProgressBar)
    trainer["callbacks"] = [c for c in callbacks if not issubclass(pkgutil.resolve_name(c["class_path"]), left_out)]
    trainer["enable_progress_bar"] = False
    for key in ("seed_everything", "config"):
        config.pop(key, None)
    return config


def _open_folder(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder, or go on in it if it belongs to the same training, or has no results yet."""
    path = folder / "config.yaml"
    if not any(folder.glob("runs/*/result.json")):
        if not path.exists() and folder.is_dir() and any(folder.iterdir()):
            raise RefusedError(
                f"Expected `--output` to be a new folder or one of `compare`, but '{folder}' holds other files."
            )
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(config, sort_keys=False).encode())
        return
    there, here = _flat(yaml.safe_load(path.read_text())), _flat(config)
    different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if different:
        _refuse_folder(folder, "training", [(key, there.get(key), here.get(key)) for key in different])


def _refuse_folder(folder: Path, what: str, differences: list[tuple[str, Any, Any]]) -> NoReturn:
    shown = "; ".join(f"{key} is {old!r} there and {new!r} here" for key, old, new in differences[:5])
    more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
    raise RefusedError(
        f"Expected `--output` to be of the same {what}, but '{folder}' is of another one: {shown}{more}. "
        "Choose another folder, or delete this one."
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by dotted names.

    Example:
        >>> _flat({"a": {"b": 1}, "c": [2]})
        {'a.b': 1, 'c.0': 2}
    """
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    leaves: dict[str, Any] = {}
    for key, value in items:
        nested = isinstance(value, dict | list) and value
        leaves |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


@final
class Comparison:
    """The runs in a folder.

    Args:
        folder: Where they are kept.
        trainer: Arguments of the Trainer of each.
        num_jobs: Processes at a time.
        metric: Name of the metric. None: the first whose name has "acc" in it.
    """

    def __init__(self, folder: Path, trainer: dict[str, Any], num_jobs: int, metric: str | None) -> None:
        self.folder, self.num_jobs, self.metric = folder, num_jobs, metric
        self.max_epochs = int(trainer["max_epochs"])
        self.one_process = trainer["accelerator"] == "cpu" and str(trainer["devices"]) in ("auto", "1")
        self.failed: dict[str, str] = {}
        self.specs: list[dict[str, Any]] = []

    def run(self, methods: Sequence[Method], ratios: Sequence[float], num_seeds: int) -> None:
        """Run what has not been run yet."""
        tuned = {method.label: setting for method in methods if (setting := method.setting) is not None}
        pilots = {
            method.label: [
                self.spec(PILOT + method.label, method, setting.arguments(drop), drop, 0) for drop in setting.pilots
            ]
            for method in methods
            if (setting := tuned.get(method.label)) is not None
        }
        for method in methods:  # what can be refused before anything is run
            if pilots.get(method.label) == []:
                self.solve(method, ratios, [])
        num_runs = num_seeds * (1 + len(methods) + len(tuned) * (len(ratios) - 1))
        num_pilots = sum(map(len, pilots.values()))
        with tqdm(total=num_runs + num_pilots, desc="compare", unit="run") as bar:
            self.finish([spec for specs in pilots.values() for spec in specs], bar)
            self.specs = [self.spec(FULL, None, {}, None, seed) for seed in range(num_seeds)]
            for method in methods:
                own = pilots.get(method.label, [])
                lost = any(spec["name"] in self.failed for spec in own)
                settings: list[tuple[float | None, dict[str, Any]]] = [(None, {})]
                if method.label in tuned:
                    solved = [{}] * len(ratios) if lost else self.solve(method, ratios, [_read(spec) for spec in own])
                    settings = list(zip(ratios, solved, strict=True))
                specs = [
                    self.spec(method.label, method, solved, ratio, seed)
                    for ratio, solved in settings
                    for seed in range(num_seeds)
                ]
                self.specs += specs
                if lost:
                    self.failed |= {spec["name"]: "not run, since a pilot run failed" for spec in specs}
            self.finish([spec for spec in self.specs if spec["name"] not in self.failed], bar)

    def solve(self, method: Method, ratios: Sequence[float], pilots: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the arguments for each ratio."""
        setting = method.setting
        assert setting is not None  # noqa: S101  (narrowing)
        if pilots:
            curve = measured_curve(setting, [(run["ratio"], run["saved"]) for run in pilots])
        else:
            curve = known_curve(setting, self.max_epochs, method.with_defaults())
        try:
            return [solve(method.label, setting, ratio, curve, argument="--prune_ratios") for ratio in ratios]
        except UnreachableError as error:
            raise RefusedError(str(error)) from error

    def spec(
        self, label: str, method: Method | None, solved: dict[str, Any], ratio: float | None, seed: int
    ) -> dict[str, Any]:
        """Return what a run is told, see `lightning_prune.compare.run`."""
        name = f"{label}{'' if ratio is None else f' {ratio:g}'} seed {seed}".replace(" ", "-")
        folder = self.folder / "runs" / name
        return {
            "name": name,
            "label": label,
            "ratio": ratio,
            "seed": seed,
            "class_path": None if method is None else method.class_path,
            "init_args": {} if method is None else method.arguments(solved),
            "config": str(self.folder / "config.yaml"),
            "folder": str(folder),
            "result": str(folder / "result.json"),
        }

    def finish(self, specs: Sequence[dict[str, Any]], bar: Any) -> None:
        """Run those of the specs that have no result."""
        open_specs = []
        for spec in specs:
            if not Path(spec["result"]).exists():
                open_specs.append(spec)
                continue
            found = _read(spec)
            keys = [key for key in ("class_path", "init_args") if found[key] != spec[key]]
            if keys:
                differences = [(f"{key} of {spec['label']}", found[key], spec[key]) for key in keys]
                _refuse_folder(self.folder, "methods", differences)
            bar.update()
        for spec in specs:
            if spec not in open_specs:
                self.check_metric(_read(spec))

        def on_end(spec: dict[str, Any], reason: str | None) -> None:
            bar.update()
            if reason is not None:
                self.failed[spec["name"]] = reason
                bar.set_postfix_str(f"{len(self.failed)} failed")
            else:
                self.check_metric(_read(spec))

        run_all(open_specs, self.num_jobs, on_end, fresh=not self.one_process)

    def check_metric(self, result: dict[str, Any]) -> None:
        """Raise if a run did not log the metric; choose one if none is named."""
        logged = sorted(result["metrics"])
        if self.metric is None:
            own = [name for name in logged if not name.startswith("prune/")]  # not prune/jaccard
            self.metric = next((name for name in own if "acc" in name.lower()), None)
        if self.metric not in logged:
            got = "none is named, and none has 'acc' in its name" if self.metric is None else f"got {self.metric!r}"
            raise RefusedError(f"Expected `--metric` to be one that the training logs, of {logged}, but {got}.")

    def all_runs(self) -> list[dict[str, Any]]:
        """Return the results of all runs in the folder, and the specs of those that failed now; full data first."""
        known = {spec["name"]: spec for spec in self.specs}
        for path in sorted(self.folder.glob("runs/*/result.json")):
            known[path.parent.name] = json.loads(path.read_text())
        pilots = [name for name, run in known.items() if run["label"].startswith(PILOT)]
        runs = [run for name, run in known.items() if name not in pilots]
        order = {label: place for place, label in enumerate(dict.fromkeys([FULL, *(run["label"] for run in runs)]))}
        return sorted(runs, key=lambda run: (order[run["label"]], run["ratio"] or 0, run["seed"]))

    def report(self) -> None:
        """Write and print what came out."""
        metric = self.metric or "metric"
        runs = self.all_runs()
        rows = report.make_rows(runs, self.failed, metric)
        table = report.make_table(rows, metric)
        report.write_csv(runs, self.failed, metric, self.folder / "results.csv")
        notes = [
            f"{self.max_epochs} epochs, seeds 0 to {max(run['seed'] for run in runs)}; `{metric}` at the end of "
            "training, mean ± standard deviation over the seeds. Saved: share of the sample-steps of full training. "
            "Ideal: 1 / (1 - saved); efficiency: speed-up / ideal."
        ]
        if self.num_jobs > 1:
            notes.append(f"{self.num_jobs} runs at a time shared the machine: wall times are longer than of one alone.")
        report.write_markdown(table, self.failed, notes, self.folder / "results.md")
        sys.stdout.write(f"\n{table}\n")
        for name, reason in self.failed.items():
            sys.stdout.write(f"failed: {name}: {reason}\n")
        written = [self.folder / name for name in ("results.csv", "results.md")]
        try:
            written += report.draw_plots(rows, runs, metric, self.folder)
        except ModuleNotFoundError as error:
            sys.stderr.write(f"No plots: {error}\n")
        sys.stdout.write("Written: " + ", ".join(str(path) for path in written) + "\n")


def _read(spec: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path(spec["result"]).read_text())
    return result
