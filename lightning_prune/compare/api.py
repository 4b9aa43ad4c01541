"""A comparison from Python: the same engine as the command, with the runs made here, one after the other."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

from lightning_prune.compare import folder as folders
from lightning_prune.compare import verdict
from lightning_prune.compare.engine import Comparison, Options
from lightning_prune.compare.jobs import Runner, Spec
from lightning_prune.compare.methods import Method, RefusedError, check_label, class_of, of_entries, read_methods
from lightning_prune.compare.page import without_reports
from lightning_prune.compare.result import Result
from lightning_prune.compare.run import make_run
from lightning_prune.core.checks import check_int

Given = str | type | Mapping[str, Any]
"""A method: its name, import path or class; or ``{label: {"class_path": ..., "init_args": {...}}}``."""


def compare_methods(
    make_model: Callable[[], LightningModule],
    make_data: Callable[[], Any],
    methods: Sequence[Given],
    ratios: Iterable[float] = (),
    seeds: int = 3,
    *,
    max_epochs: int = 10,
    trainer: Mapping[str, Any] | None = None,
    metric: str | None = None,
    margin: float | None = None,
    better: str | None = None,
    control: bool = True,
    until_decided: bool = False,
    max_seeds: int = 20,
    pilots: bool = False,
    output: str | Path | None = None,
) -> Result:
    """Train with several methods, ratios and seeds, and say whether pruning hurt; see ``docs/compare.md``.

    Runs are made in this process, one after the other, each with the global seeds set to its own.

    Args:
        make_model: Returns a new module for each run.
        make_data: Returns the data of each run: a `LightningDataModule`, a training loader, or a pair of a training and
            a validation loader.
        methods: Names of methods, import paths or classes of your own, or mappings of a label to
            ``{"class_path": ..., "init_args": {...}}``.
        ratios: Shares of the sample-steps of the run to save, in (0, 1).
        seeds: Number of seeds, from 0.
        max_epochs: Epochs of each run.
        trainer: Further arguments of the `Trainer`; its callbacks are copied for each run. Without it, nothing is
            logged, shown or saved, on the CPU.
        metric: Logged metric, as it is at the end. None: the first with "acc" in its name.
        margin: Loss of the metric that would not matter. None: half a point of an accuracy, 1 % of others.
        better: ``"higher"`` or ``"lower"``. None: as the metric's name says.
        control: Whether full data is run for fewer epochs too, as many steps as each ratio leaves.
        until_decided: Whether seeds are added until every row has a verdict.
        max_seeds: Most seeds then.
        pilots: Whether each method has one ratio for the whole run, which pilot runs tell where what it saves
            depends on the losses, instead of going by what its run has saved so far.
        output: Folder to write results, and to go on in, as with the command. None: nothing is kept.

    Raises:
        RefusedError: If an argument does not do, a ValueError; the message says how to mend it.
        ModuleNotFoundError: If SciPy is not installed.
    """
    check_int("seeds", seeds, low=1)
    check_int("max_epochs", max_epochs, low=1)
    check_int("max_seeds", max_seeds, low=verdict.MIN_PAIRS)
    verdict.check_installed()
    shares = list(ratios)
    for ratio in shares:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise RefusedError(f"Expected `ratios` to be numbers in (0, 1), but got {ratio!r}.")
    if better not in (None, "higher", "lower"):
        raise RefusedError(f"Expected `better` to be 'higher', 'lower' or None, but got {better!r}.")
    if margin is not None and not margin >= 0:
        raise RefusedError(f"Expected `margin` to be a number >= 0, but got {margin!r}.")
    found = [method for given in methods for method in _methods(given)]
    labels = [method.label for method in found]
    if not found or len(set(labels)) < len(labels):
        raise RefusedError(f"Expected `methods` to be at least one, and each once, but got {labels}.")
    if not shares and any(method.setting for method in found):
        raise RefusedError("Expected `ratios`, shares of the sample-steps to save, such as [0.3, 0.5], but got none.")
    arguments = {**_QUIET, **(trainer or {}), "max_epochs": max_epochs}
    lower = None if better is None else better == "lower"
    report: dict[str, Any] | None = None if output is None else {}
    options = Options(metric, lower, margin, control, until_decided, max_seeds, report=report, pilots=pilots)
    with tempfile.TemporaryDirectory() if output is None else contextlib.nullcontext(str(output)) as name:
        folder = Path(name)
        with folders.hold(folder):
            folders.bind(folder, {"trainer": {name: _plain(value) for name, value in arguments.items()}})
            comparison = Comparison(folder, arguments, _Here(make_model, make_data, arguments), found, shares, options)
            comparison.check()
            comparison.run(seeds)
            result = comparison.result()
            if output is not None:
                result.write(folder)
            return result


_QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def _methods(given: Given) -> list[Method]:
    """Return the methods that one of ``methods`` stands for."""
    if isinstance(given, str):
        return read_methods(given)
    if isinstance(given, Mapping):
        return of_entries(dict(given), "each of `methods`")
    if isinstance(given, type):
        path = f"{given.__module__}.{given.__qualname__}"
        check_label(given.__name__)
        class_of(path, given.__name__)
        return read_methods(path)
    raise RefusedError(
        "Expected each of `methods` to be a name, a class, or a mapping of a label to `{'class_path': ..., "
        f"'init_args': {{...}}}}`, but got {given!r}."
    )


def _plain(value: Any) -> Any:
    """Return an argument of the Trainer as it is compared with a folder's: objects by their class."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else type(value).__qualname__


@final
class _Here(Runner):
    """Makes runs in this process."""

    def __init__(self, make_model: Callable[[], Any], make_data: Callable[[], Any], trainer: dict[str, Any]) -> None:
        self.make_model, self.make_data, self.trainer = make_model, make_data, trainer

    def run(
        self,
        specs: Sequence[Spec],
        on_end: Callable[[Spec, str | None], None],
        on_tick: Callable[[Sequence[Spec]], None],
    ) -> None:
        """Run each spec; one that raises an error has failed, and the others go on."""
        for spec in specs:
            folder = Path(spec["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            on_tick([spec])
            reason = None
            try:
                make_run(spec, lambda callbacks, spec=spec: self._fit(spec, callbacks))  # type: ignore[misc]
            except Exception as error:
                (folder / "log.txt").write_text(traceback.format_exc())
                reason = f"{type(error).__name__}: {error}"
            on_end(spec, reason)

    def _fit(self, spec: Spec, callbacks: list[Callback]) -> Trainer:
        loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="lightning")
                return self._train(spec, callbacks)
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

    def _train(self, spec: Spec, callbacks: list[Callback]) -> Trainer:
        seed_everything(spec["seed"], verbose=False)
        own = copy.deepcopy(self.trainer.get("callbacks") or [])
        own = own if isinstance(own, list) else [own]
        own = without_reports(own, callbacks)
        if spec["class_path"] is not None:
            own.append(_build(spec["class_path"], spec["init_args"]))
        arguments = {**self.trainer, **spec.get("trainer", {}), "default_root_dir": spec["folder"]}
        trainer = Trainer(**{**arguments, "callbacks": [*own, *callbacks]})
        model, data = self.make_model(), self.make_data()
        if isinstance(data, LightningDataModule):
            trainer.fit(model, datamodule=data)
        else:
            trainer.fit(model, *(data if isinstance(data, tuple) else (data,)))
        return trainer


def _build(class_path: str, init_args: Mapping[str, Any]) -> Any:
    """Build a method, and the one that it wraps."""
    built = dict(init_args)
    if isinstance(base := built.get("base"), dict):
        built["base"] = _build(base["class_path"], base.get("init_args") or {})
    return class_of(class_path, class_path)(**built)
