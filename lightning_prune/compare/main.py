"""The command: what is to be run, what has been run already, and what came out."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import logging
import os
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm  # type: ignore[import-untyped]

import lightning_prune
from lightning_prune.cli import PruneCLI
from lightning_prune.compare import report
from lightning_prune.compare.jobs import run_all
from lightning_prune.compare.run import callback_argument
from lightning_prune.compare.settings import (
    NEEDS_FILE,
    SETTINGS,
    WRAPPED_PILOTS,
    WRAPPERS,
    Setting,
    UnreachableError,
    known_curve,
    measured_curve,
    solve,
)
from lightning_prune.core.export import atomic_write

FULL = "full data"
PILOT = "pilot of "


class RefusedError(ValueError):
    """A mistake of the user's; the message says how to mend it."""


@dataclass(frozen=True)
class Method:
    """A method to compare, and what is known of it: a name, or an entry of a file of methods."""

    label: str
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.class_path.rpartition(".")[2]

    @property
    def base(self) -> Method | None:
        """The method that it wraps, if any."""
        entry = self.init_args.get("base") if self.name in WRAPPERS else None
        entry = {"class_path": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
            return None  # what it is instead, the parser of the configuration will say
        return Method(self.label, entry["class_path"], entry.get("init_args") or {})

    @property
    def setting(self) -> Setting | None:
        """How it is set to reach a ratio; None: it is run once, with the arguments given."""
        if self.base is not None:
            setting = self.base.setting
            return setting and replace(setting, pilots=tuple(sorted({*setting.pilots, *WRAPPED_PILOTS})))
        setting = SETTINGS.get(self.name)
        return None if setting is None or setting.fixed_by(self.init_args) else setting

    def arguments(self, solved: dict[str, Any]) -> dict[str, Any]:
        """Return its arguments with those that set it to a ratio, which may be its base's."""
        if self.base is None:
            return {**self.init_args, **solved}
        return {
            **self.init_args,
            "base": {"class_path": self.base.class_path, "init_args": self.base.arguments(solved)},
        }

    def with_defaults(self) -> dict[str, Any]:
        """Return its arguments, defaults included."""
        parameters = inspect.signature(_class_of(self.class_path, self.label)).parameters
        return {name: parameter.default for name, parameter in parameters.items()} | self.init_args


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
        help=f"of {', '.join(known_methods())}, or yaml files of `label: {{class_path: ..., init_args: ...}}`; an "
        "entry that does not give its ratio itself is set to each of --prune_ratios, others are run as they are",
    )
    parser.add_argument("--prune_ratios", nargs="+", default=[], metavar="RATIO", help="shares of sample-steps to save")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument("--budget_epochs", type=int, help="epochs of each run, instead of trainer.max_epochs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default: 1)")
    parser.add_argument("--metric", help="logged metric to compare, as it is at the end (default: the first accuracy)")
    parser.add_argument("--output", help="folder of runs and results (default: results/NAME_OF_CONFIG)")
    return parser


def known_methods() -> list[str]:
    """Return the names of the methods that can be set to a ratio without further arguments."""
    return [name for name in SETTINGS if name not in NEEDS_FILE]


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
    methods = [method for text in _split(options.methods) for method in _methods(text)]
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


def _methods(text: str) -> list[Method]:
    """Return the method of a name, or those of a file."""
    if Path(text).suffix not in (".yaml", ".yml"):
        if text in NEEDS_FILE:
            why, arguments = NEEDS_FILE[text]
            raise RefusedError(
                f"Expected more than the name of {text} in `--methods`: {why}. Give it in a yaml file of methods, as "
                f"`{text}: {{class_path: {text}, init_args: {{{arguments}}}}}`."
            )
        if text not in known_methods():
            raise RefusedError(
                f"Expected each of `--methods` to be one of {', '.join(known_methods())}, or a yaml file of methods, "
                f"but got {text!r}."
            )
        return [Method(text, f"lightning_prune.{text}")]
    try:
        entries = yaml.safe_load(Path(text).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RefusedError(f"Expected `--methods` to name a readable yaml file, but got {text!r}: {error}") from error
    hint = f"Expected {text!r} to hold `label: {{class_path: ..., init_args: {{...}}}}` for each method, but"
    if not isinstance(entries, dict) or not entries:
        raise RefusedError(f"{hint} it holds {type(entries).__name__}.")
    methods = []
    for label, entry in entries.items():
        given = entry if isinstance(entry, dict) else {}
        if not isinstance(given.get("class_path"), str) or set(given) - {"class_path", "init_args"}:
            raise RefusedError(f"{hint} {label!r} is {entry!r}.")
        if not re.fullmatch(r"[\w .,+=()-]+", str(label)) or label == FULL or str(label).startswith(PILOT):
            raise RefusedError(f"Expected labels of letters, digits and ' .,+=()-', not {FULL!r}, but got {label!r}.")
        class_path = _full_path(given["class_path"])
        _class_of(class_path, label)
        methods.append(Method(str(label), class_path, dict(given.get("init_args") or {})))
    return methods


def _full_path(class_path: str) -> str:
    """Return the path of a class of ours that is given by its name."""
    if "." in class_path:
        return class_path
    return f"lightning_prune.{'' if hasattr(lightning_prune, class_path) else 'scoring.'}{class_path}"


def _class_of(class_path: str, label: str) -> type:
    try:
        found = pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, lightning_prune.PruningCallback)):
        raise RefusedError(f"Expected the class of {label!r} to be a `PruningCallback`, but got {class_path!r}.")
    return found


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


class _CheckCLI(PruneCLI):
    """Reads a configuration and builds what it says, but does not train."""

    def fit(self, **kwargs: Any) -> None:
        """Stand in for `Trainer.fit`."""


def _resolve(paths: list[str], overrides: list[str], methods: list[Method]) -> dict[str, Any]:
    """Return the whole configuration of the training, without pruning methods and progress bars.

    A mistake in it, or in the arguments of a method, ends the program as in ``lightning-prune fit``.
    """
    args = ["fit", *(f"--config={path}" for path in paths), *overrides]
    with _quiet():
        cli = _CheckCLI(args=args, save_config_callback=None)
        for method in methods:
            if method.init_args or method.name in NEEDS_FILE:
                own = callback_argument(method.class_path, method.init_args)
                _CheckCLI(args=[*args, own], save_config_callback=None)
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
            return [solve(method.label, setting, ratio, curve) for ratio in ratios]
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
