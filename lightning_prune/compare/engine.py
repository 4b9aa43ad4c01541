"""What is to be run, what has been run already, and when it is enough; whoever makes the runs."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from lightning_prune.compare.control import control_epochs, control_label
from lightning_prune.compare.folder import refuse
from lightning_prune.compare.jobs import Runner, Spec
from lightning_prune.compare.methods import FULL, PILOT, Method, RefusedError
from lightning_prune.compare.progress import Bar, cost, duration
from lightning_prune.compare.result import Result
from lightning_prune.compare.run import PROBE_BATCHES
from lightning_prune.compare.verdict import MIN_PAIRS, lower_is_better, next_look
from lightning_prune.core.ratio import UnreachableError, measured_curve, solve

_POINT = 0.01
"""How far a run that goes by what it has saved may end from what was asked, beside one sample an epoch."""


@final
@dataclass(frozen=True)
class Options:
    """How a comparison is judged, and how long it goes on.

    Attributes:
        metric: Name of the metric. None: the first whose name has "acc" in it.
        lower: Whether lower values are better. None: as the metric's name says.
        margin: Loss that would not matter, in units of the metric. None: see `verdict.default_margin`.
        control: Whether full data is also run for fewer epochs, as many steps as each ratio leaves.
        until_decided: Whether seeds are added until every row has a verdict.
        max_seeds: Most seeds then.
        first_seed: The first of the seeds.
        report: Arguments of the `PruningReport` of the methods' runs of the first seed. None: they have none.
        pilots: Whether a method has one ratio for the whole run, which pilot runs tell where it depends on the
            losses. False: such a method is set epoch by epoch, by what its run has saved so far.
    """

    metric: str | None = None
    lower: bool | None = None
    margin: float | None = None
    control: bool = True
    until_decided: bool = False
    max_seeds: int = 20
    first_seed: int = 0
    report: dict[str, Any] | None = None
    pilots: bool = False


@final
@dataclass(frozen=True)
class Cell:
    """A method at a ratio, which is run once per seed.

    Attributes:
        label: Name in the table.
        ratio: Share of sample-steps to save; None: it is run as it is.
        method: None: full data.
        solved: Arguments that set the method to the ratio.
        epochs: Number of epochs, if fewer.
    """

    label: str
    ratio: float | None = None
    method: Method | None = None
    solved: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None

    @property
    def key(self) -> tuple[str, float | None]:
        """What tells it from others."""
        return self.label, self.ratio


@final
class Comparison:
    """Runs of full data, of fewer epochs, and of methods at ratios.

    Args:
        folder: Where all of it is written.
        trainer: Arguments of the Trainer of each run; ``max_epochs`` at least.
        runner: Makes the runs.
        methods: What to compare.
        ratios: Shares of the sample-steps to save.
        options: How it is judged.

    Attributes:
        failed: Why runs of this command failed, by name.
        unreachable: Why cells cannot be run, by label and ratio.
    """

    def __init__(
        self,
        folder: Path,
        trainer: dict[str, Any],
        runner: Runner,
        methods: Sequence[Method],
        ratios: Sequence[float],
        options: Options,
    ) -> None:
        self.folder, self.trainer, self.runner, self.options = folder, trainer, runner, options
        self.methods, self.ratios = [m if options.pilots else m.budgeted() for m in methods], ratios
        self.metric = options.metric
        self.max_epochs = int(trainer["max_epochs"])
        self.failed: dict[str, str] = {}
        self.unreachable: dict[tuple[str, float | None], str] = {}
        self.specs: list[Spec] = []
        self.probed: dict[str, Any] = {}

    def check(self) -> None:
        """Refuse what can be refused before the first training: ratios, then the metric, by a few batches.

        Raises:
            RefusedError: If no ratio can be reached, the metric is not logged, or the training does not even start.
        """
        self._refuse_nothing_to_compare(
            [cell for method in self.methods if not self._pilots(method) for cell in self._cells(method, [])]
        )
        spec = self.spec(Cell("check"), 0) | {"probe": True, "folder": str(self.folder / "check")}
        spec |= {"result": str(self.folder / "check" / "result.json"), "trainer": self._short()}
        if not Path(spec["result"]).exists():
            reasons: list[str | None] = []
            self.runner.run([spec], lambda _, reason: reasons.append(reason), lambda _: None)
            if reasons != [None]:
                raise RefusedError(
                    f"Expected a training that runs, but a trial of a few batches ended in {reasons[0]}. Mend that "
                    "first: `lightning-prune fit` with the same configuration shows it whole."
                )
        self.probed = read(spec)
        self.check_metric(self.probed)

    def _short(self) -> dict[str, Any]:
        """Return arguments of the Trainer for a few batches, and one of validation."""
        limits = {"limit_train_batches": PROBE_BATCHES, "limit_val_batches": 1}
        given = {name: self.trainer.get(name) for name in limits}
        limits = {n: min(most, g) if isinstance(g := given[n], int) else most for n, most in limits.items()}
        once = {"max_epochs": 1, "check_val_every_n_epoch": 1, "val_check_interval": 1.0, "num_sanity_val_steps": 0}
        return {**limits, **once, "accumulate_grad_batches": 1, "logger": self.trainer.get("logger") is not False}

    def check_metric(self, result: dict[str, Any]) -> None:
        """Choose the metric if none is named.

        Raises:
            RefusedError: If a run did not log it.
        """
        logged = sorted(result["metrics"])
        if self.metric is None:
            own = [name for name in logged if not name.startswith("prune/")]  # not prune/jaccard
            self.metric = next((name for name in own if "acc" in name.lower()), None)
        if self.metric not in logged:
            got = (
                "none is named, and none of them is an accuracy by its name"
                if self.metric is None
                else f"got {self.metric!r}"
            )
            raise RefusedError(f"Expected `--metric` to be one that the training logs, of {logged}, but {got}.")

    def run(self, num_seeds: int) -> None:
        """Run what has not been run yet."""
        pilots = {method.label: self._pilots(method) for method in self.methods}
        wanted = [spec for specs in pilots.values() for spec in specs]
        num_cells = len(self._controls()) + sum(len(self.ratios) if method.setting else 1 for method in self.methods)
        with Bar(len(wanted) + num_seeds * num_cells, self.runner.num_jobs) as bar:
            self.finish(wanted, bar)
            cells = self.all_cells(pilots)
            self._refuse_nothing_to_compare(cells[len(self._controls()) :])
            self.add_seeds(cells, 1, bar)
            self.all_runs()  # notes which budgets could not be kept
            cells = [cell for cell in cells if cell.key not in self.unreachable]
            self.add_seeds(cells, num_seeds, bar)
            while self.options.until_decided and (left := self.undecided(cells)):
                num_seeds = next_look(max(num_seeds, MIN_PAIRS - 1))
                if num_seeds > self.options.max_seeds:
                    break
                self.add_seeds(left, num_seeds, bar)

    def forecast(self, num_seeds: int) -> str:
        """Return the list of runs, what each method reaches, and about how long it takes; nothing is trained."""
        per_epoch, seeds = self.probed.get("epoch_seconds"), self._seeds(num_seeds)
        which = f"seeds {seeds[0]} to {seeds[-1]}"
        pilots = {method.label: self._pilots(method) for method in self.methods}
        lines, specs = [], [spec for own in pilots.values() for spec in own]
        for cell in self._controls():
            lines.append(f"{cell.label}: {which}")
            specs += [self.spec(cell, seed) for seed in self._seeds(num_seeds)]
        for method in self.methods:
            setting = method.setting
            for ratio in self.ratios if setting else [None]:
                name = method.label if ratio is None else f"{method.label} at {ratio:g}"
                if pilots[method.label]:
                    told = f"what it reaches is measured by {len(pilots[method.label])} pilot runs"
                elif (reason := self.unreachable.get((method.label, ratio))) is not None:
                    lines.append(f"{name}: not run. {reason}")
                    continue
                elif setting is None:
                    told = "run as it is"
                else:
                    told = f"reaches {method.curve(self.max_epochs)[-1][1]:.3f}"
                    told += ", if its losses allow it" if method.is_budgeted else ""
                lines.append(f"{name}: {which}; {told}")
                specs += [self.spec(Cell(method.label, ratio, method), seed) for seed in self._seeds(num_seeds)]
        left = [spec for spec in specs if not Path(spec["result"]).exists()]
        seconds = None if per_epoch is None else sum(map(cost, left)) * per_epoch / self.runner.num_jobs
        took = "a time that is not known, as the loader has no length" if seconds is None else duration(seconds)
        more = f", and more seeds up to {self.options.max_seeds}" if self.options.until_decided else ""
        head = f"{len(specs)} runs, of which {len(specs) - len(left)} are there; the others take about {took}{more}."
        return "\n".join([head, f"metric: {self.metric}", *lines]) + "\n"

    def all_cells(self, pilots: dict[str, list[Spec]]) -> list[Cell]:
        """Return the cells, full data and the controls first; what cannot be run is noted.

        Args:
            pilots: Specs of each method's finished pilot runs.
        """
        cells = self._controls()
        for method in self.methods:
            if any(spec["name"] in self.failed for spec in pilots[method.label]):
                for ratio in self.ratios:
                    self.unreachable[method.label, ratio] = "not run, since a pilot run failed"
            else:
                cells += self._cells(method, [read(spec) for spec in pilots[method.label]])
        return [cell for cell in cells if cell.key not in self.unreachable]

    def _refuse_nothing_to_compare(self, cells: Sequence[Cell]) -> None:
        """Refuse a command of which no cell can be run."""
        wanted = sum(len(self.ratios) if method.setting else 1 for method in self.methods)
        told = [reason for reason in self.unreachable.values() if reason.startswith("Expected")]
        if not cells and len(told) == wanted:
            raise RefusedError(told[0])

    def _controls(self) -> list[Cell]:
        """Return full data, and full data for fewer epochs."""
        epochs = {control_epochs(self.max_epochs, ratio) for ratio in self.ratios} if self.options.control else set()
        names = {n: control_label(n, self.max_epochs) for n in sorted(filter(None, epochs), reverse=True)}
        return [Cell(FULL), *(Cell(name, epochs=n) for n, name in names.items())]

    def _cells(self, method: Method, pilots: list[dict[str, Any]]) -> list[Cell]:
        """Return the cells of a method, without those that cannot be reached, which are noted."""
        setting = method.setting
        if setting is None:
            return [Cell(method.label, None, method)]
        if pilots:
            curve = measured_curve(setting, [(run["ratio"], run["saved"]) for run in pilots])
        else:
            curve = method.curve(self.max_epochs)
        cells = []
        for ratio in self.ratios:
            with self._noting(method.label, ratio):
                named = replace(setting, bound=method.bound)
                solved = solve(method.label, named, ratio, curve, argument="--prune_ratios")
                cells.append(Cell(method.label, ratio, method, solved))
        return cells

    @contextlib.contextmanager
    def _noting(self, label: str, ratio: float) -> Iterator[None]:
        """Note that a cell cannot be reached, and go on."""
        try:
            yield
        except UnreachableError as error:
            self.unreachable[label, ratio] = str(error)

    def _pilots(self, method: Method) -> list[Spec]:
        """Return the runs that measure what a method saves."""
        setting = method.setting
        if setting is None:
            return []
        cells = [Cell(PILOT + method.label, drop, method, setting.arguments(drop)) for drop in setting.pilots]
        return [self.spec(cell, 0) for cell in cells]

    def spec(self, cell: Cell, seed: int) -> Spec:
        """Return what a run is told, see `lightning_prune.compare.run`."""
        name = f"{cell.label}{'' if cell.ratio is None else f' {cell.ratio:g}'} seed {seed}".replace(" ", "-")
        folder = self.folder / "runs" / name
        reported = cell.method is not None and seed == self.options.first_seed and not cell.label.startswith(PILOT)
        return {
            "name": name,
            "label": cell.label,
            "ratio": cell.ratio,
            "seed": seed,
            "class_path": None if cell.method is None else cell.method.class_path,
            "init_args": {} if cell.method is None else cell.method.arguments(cell.solved),
            "epochs": cell.epochs,
            "max_epochs": self.max_epochs,
            "probe": False,
            "report": self.options.report if reported else None,
            "config": str(self.folder / "config.yaml"),
            "folder": str(folder),
            "result": str(folder / "result.json"),
        }

    def _seeds(self, number: int) -> range:
        return range(self.options.first_seed, self.options.first_seed + number)

    def add_seeds(self, cells: Sequence[Cell], num_seeds: int, bar: Bar) -> None:
        """Run cells, and full data with which they are paired, for so many seeds; methods take turns."""
        unique = {cell.key: cell for cell in [*self._controls(), *cells]}.values()
        specs = [self.spec(cell, seed) for seed in self._seeds(num_seeds) for cell in unique]
        known = {spec["name"] for spec in self.specs}
        new = [spec for spec in specs if spec["name"] not in known]
        self.specs += new
        bar.expect(bar.bar.n + len(new), [])
        self.finish(new, bar)

    def undecided(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that more seeds may decide: those without a verdict of which no run has failed."""
        result = self.result()
        failed = {(spec["label"], spec["ratio"]) for spec in self.specs if spec["name"] in self.failed}
        verdicts = {(row.label, row.ratio): verdict for row, verdict in zip(result.rows, result.verdicts, strict=True)}
        left = [cell for cell in cells if (v := verdicts.get(cell.key)) is not None and not v.is_decided]
        return [cell for cell in left if cell.key not in failed and (FULL, None) not in failed]

    def finish(self, specs: Sequence[Spec], bar: Bar) -> None:
        """Run those of the specs that have no result."""
        open_specs = []
        for spec in specs:
            if not Path(spec["result"]).exists():
                open_specs.append(spec)
                continue
            found = read(spec)
            keys = [key for key in ("class_path", "init_args", "epochs") if found.get(key) != spec[key]]
            if keys:
                refuse(
                    self.folder, "methods", [(f"{key} of {spec['label']}", found.get(key), spec[key]) for key in keys]
                )
            bar.update(spec)
        for spec in specs:
            if spec not in open_specs:
                self.check_metric(read(spec))

        def on_end(spec: Spec, reason: str | None) -> None:
            bar.update(spec)
            if reason is not None:
                self.failed[spec["name"]] = reason
            else:
                self.check_metric(read(spec))

        bar.expect(0, open_specs)
        self.runner.run(open_specs, on_end, bar.tick)

    def all_runs(self) -> list[dict[str, Any]]:
        """Return the results of all runs in the folder, and the specs of those that failed now; full data first."""
        known = {spec["name"]: spec for spec in self.specs}
        for path in sorted(self.folder.glob("runs/*/result.json")):
            known[path.parent.name] = json.loads(path.read_text())
        pilots = [name for name, run in known.items() if run["label"].startswith(PILOT)]
        self._note_missed([run for name, run in known.items() if name not in pilots])
        runs = [
            run
            for name, run in known.items()
            if name not in pilots and (run["label"], run["ratio"]) not in self.unreachable
        ]
        first = [FULL, *(run["label"] for run in runs if run.get("epochs")), *(run["label"] for run in runs)]
        order = {label: place for place, label in enumerate(dict.fromkeys(first))}
        return sorted(runs, key=lambda run: (order[run["label"]], run["ratio"] or 0, run["seed"]))

    def _note_missed(self, runs: Sequence[dict[str, Any]]) -> None:
        """Note the cells whose runs went by what they had saved, and ended more than a point from what was asked."""
        bounds = {method.label: method.bound for method in self.methods}
        found: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for run in runs:
            if run.get("saved") is not None and run["init_args"].get("save") == run["ratio"] is not None:
                found.setdefault((run["label"], run["ratio"]), []).append(run)
        for (label, ratio), own in found.items():
            saved = statistics.fmean(run["saved"] for run in own)
            if abs(saved - ratio) > _POINT + own[0].get("resolution", 0.0):
                self.unreachable[label, ratio] = (
                    f"Expected `--prune_ratios` that {label} can reach, about {saved:.3f} as its run showed, but got "
                    f"{ratio:g}. {bounds.get(label, '')}"
                ).rstrip()

    def result(self) -> Result:
        """Return what came out so far."""
        metric, runs = self.metric or "metric", self.all_runs()
        lower = lower_is_better(metric) if self.options.lower is None else self.options.lower
        return Result(
            runs, metric, self.max_epochs, lower=lower, margin=self.options.margin, failed=self.failed,
            unreachable=self.unreachable, num_jobs=self.runner.num_jobs,
        )  # fmt: skip


def read(spec: Spec) -> dict[str, Any]:
    """Return the result of a run."""
    result: dict[str, Any] = json.loads(Path(spec["result"]).read_text())
    return result
