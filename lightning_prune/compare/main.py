"""The command: what its arguments say, and what is checked before anything is trained."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import ProgressBar

import lightning_prune
from lightning_prune import PruningReport
from lightning_prune.cli import PruneCLI
from lightning_prune.compare import folder as folders
from lightning_prune.compare import verdict
from lightning_prune.compare.engine import Comparison, Options
from lightning_prune.compare.launchers import make_runner
from lightning_prune.compare.methods import Method, RefusedError, known_methods, read_methods
from lightning_prune.compare.run import callback_argument
from lightning_prune.parser import compare_parser, parse_compare


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-prune compare --config FILE --methods A,B --prune_ratios 0.3,0.5``.

    Args:
        args: The arguments after ``compare``. None: those of the command line.

    Raises:
        SystemExit: With code 2 for a mistake in the arguments, with 1 if a run failed, with 130 if interrupted.
    """
    sys.path.insert(0, os.getcwd())  # so that a config can name the user's own modules
    options, overrides = parse_compare(sys.argv[2:] if args is None else args)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running processes are ended
    try:
        num_failed = _compare(options, overrides)
    except (RefusedError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and not str(error).startswith("Expected"):
            raise
        compare_parser().error(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Finished runs are kept: give the same command again to go on.\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if num_failed:
        raise SystemExit(1)


def _compare(options: argparse.Namespace, overrides: list[str]) -> int:
    """Do what the arguments say; return the number of failed runs."""
    if options.max_seeds < verdict.MIN_PAIRS:
        raise RefusedError(f"Expected `--max_seeds` to be an int >= {verdict.MIN_PAIRS}, but got {options.max_seeds}.")
    ratios = options.prune_ratios
    methods = [method for text in options.methods for method in read_methods(text)]
    if doubled := {m.label for m in methods if sum(n.label == m.label for n in methods) > 1}:
        raise RefusedError(f"Expected each method once in `--methods`, but got {sorted(doubled)} more than once.")
    verdict.check_installed()
    if options.budget_epochs is not None:
        overrides = [*overrides, f"--trainer.max_epochs={options.budget_epochs}"]
    if not ratios and any(method.setting for method in methods):
        raise RefusedError(
            "Expected `--prune_ratios`, shares of the sample-steps to save, such as 0.3,0.5, but got none."
        )
    config, report = _resolve(options.config, overrides, methods)
    folder = Path(options.output or Path("results") / Path(options.config[0]).stem)
    with folders.hold(folder):
        folders.bind(folder, config)
        return _run(folder, config["trainer"], methods, ratios, report, options)


def _run(
    folder: Path,
    trainer: dict[str, Any],
    methods: list[Method],
    ratios: list[float],
    report: dict[str, Any],
    options: argparse.Namespace,
) -> int:
    """Check, run and report in a folder that is held; return the number of failed runs."""
    alone = trainer["accelerator"] == "cpu" and str(trainer["devices"]) in ("auto", "1")
    judged = Options(
        metric=options.metric,
        lower=None if options.better is None else options.better == "lower",
        margin=options.margin,
        control=not options.no_control,
        until_decided=options.until_decided,
        max_seeds=options.max_seeds,
        first_seed=options.first_seed,
        report=report,
        pilots=options.pilots,
    )
    runner = make_runner(options.launcher, _launcher_args(options), options.jobs, folder, fresh=not alone)
    comparison = Comparison(folder, trainer, runner, methods, ratios, judged)
    comparison.check()
    if options.dry_run:
        sys.stdout.write(comparison.forecast(options.seeds))
        return 0
    comparison.run(options.seeds)
    result = comparison.result()
    sys.stdout.write(f"\n{result.table}\n" + "".join(f"{note}\n" for note in result.notes))
    for name, reason in result.failed.items():
        sys.stdout.write(f"failed: {name}: {reason}\n")
    try:
        sys.stdout.write("Written: " + ", ".join(str(path) for path in result.write(folder)) + "\n")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"Written: {folder / 'results.csv'}, {folder / 'results.md'}, ... No plots: {error}\n")
    return len(result.failed)


def _launcher_args(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the launcher.

    Raises:
        RefusedError: If they are no mapping.
    """
    try:
        arguments = yaml.safe_load(options.launcher_args)
    except yaml.YAMLError:
        arguments = None
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise RefusedError(
            "Expected `--launcher_args` to be a mapping, such as '{num_cpus: 4, num_gpus: 1}', but got "
            f"{options.launcher_args!r}."
        )
    return arguments


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


def _resolve(paths: list[str], overrides: list[str], methods: list[Method]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the whole configuration of the training, and the arguments of its `PruningReport`.

    It is without that, without pruning methods, and without progress bars.

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
    classes = [pkgutil.resolve_name(callback["class_path"]) for callback in callbacks]
    left_out = (lightning_prune.PruningCallback, ProgressBar, PruningReport)
    trainer["callbacks"] = [c for c, of in zip(callbacks, classes, strict=True) if not issubclass(of, left_out)]
    reports = [c["init_args"] for c, of in zip(callbacks, classes, strict=True) if issubclass(of, PruningReport)]
    trainer["enable_progress_bar"] = False
    for key in ("seed_everything", "config"):
        config.pop(key, None)
    return config, {key: value for key, value in (reports[-1] if reports else {}).items() if key != "path"}
