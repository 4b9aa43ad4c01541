"""What came out of a comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lightning_prune.compare import plots, report
from lightning_prune.compare.control import control_epochs, control_label
from lightning_prune.compare.methods import FULL
from lightning_prune.compare.page import write_page
from lightning_prune.compare.report import Row
from lightning_prune.compare.verdict import Verdict, default_margin, judge
from lightning_prune.core.export import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@final
class Result:
    """Runs, and what they say.

    Args:
        runs: Specs of all runs, full data first; the finished ones with what came out.
        metric: Name of the metric.
        max_epochs: Epochs of a whole run.
        lower: Whether lower values of the metric are better.
        margin: Loss that would not matter. None: see `verdict.default_margin`.
        failed: Why runs failed, by name.
        unreachable: Why methods were not run at ratios, by label and ratio.
        num_jobs: Runs at a time.
    """

    def __init__(
        self,
        runs: Sequence[dict[str, Any]],
        metric: str,
        max_epochs: int,
        *,
        lower: bool = False,
        margin: float | None = None,
        failed: dict[str, str] | None = None,
        unreachable: dict[tuple[str, float | None], str] | None = None,
        num_jobs: int = 1,
    ) -> None:
        self.runs, self.metric, self.max_epochs, self.lower, self.num_jobs = runs, metric, max_epochs, lower, num_jobs
        self.failed, self.unreachable = failed or {}, unreachable or {}
        self.rows = report.make_rows(runs, self.failed, self.unreachable, metric)
        full = self._full
        self.margin = default_margin(metric, list(full.values.values()) if full else []) if margin is None else margin

    @property
    def _full(self) -> Row | None:
        return next((row for row in self.rows if row.label == FULL), None)

    @cached_property
    def verdicts(self) -> list[Verdict | None]:
        """The verdict on each of ``rows`` against full data; None for full data itself, and what could not be run."""
        full = self._full
        judged = [row for row in self.rows if row is not full and row.unreachable is None]
        pairs = {id(row): row.better_than(full, lower=self.lower) for row in judged} if full else {}
        return [judge(pairs[id(row)], self.margin, len(pairs)) if id(row) in pairs else None for row in self.rows]

    @cached_property
    def controls(self) -> list[Verdict | None]:
        """Of each of ``rows``, its difference to full data at the same number of steps; None where that was not run."""
        rivals = {row.label: row for row in self.rows if row.label.startswith(f"{FULL}, ")}
        pairs = {}
        for row in self.rows:
            label = self._control(row)
            if row.label not in (FULL, *rivals) and label in rivals and row.values:
                pairs[id(row)] = row.better_than(rivals[label], lower=self.lower)
        equal = 1e-4 * self.margin
        return [
            judge(pairs[id(row)], 0.0, len(pairs), resolution=equal) if id(row) in pairs else None for row in self.rows
        ]

    def _control(self, row: Row) -> str:
        saved = row.ratio if row.ratio is not None else sum(row.saved) / len(row.saved) if row.saved else 0.0
        return control_label(control_epochs(self.max_epochs, saved) or self.max_epochs, self.max_epochs)

    @property
    def table(self) -> str:
        """Two tables in Markdown: whether pruning hurt, and what it saved."""
        answer = report.answer_table(self.rows, self.verdicts, self.controls, self.metric)
        return f"{answer}\n{report.cost_table(self.rows)}"

    @property
    def notes(self) -> list[str]:
        """What the tables are of, and what to mind."""
        seeds = sorted({run["seed"] for run in self.runs if "metrics" in run})
        worse = "lower is better" if self.lower else "higher is better"
        num_rows, jobs = sum(verdict is not None for verdict in self.verdicts), self.num_jobs
        notes = [
            f"{self.max_epochs} epochs, seeds {seeds[0] if seeds else '-'} to {seeds[-1] if seeds else '-'}; "
            f"`{self.metric}` ({worse}) at the end of training, mean ± standard deviation over the seeds. Saved: share "
            "of the sample-steps of full training.",
            "Against full data: mean difference with the same seed, positive is better, and its 95 % interval, which "
            f"holds for all {num_rows} rows at once (Bonferroni), and however often seeds are added: it is given at "
            f"3, 5, 10, 20, ... seeds. No worse: by no more than {self.margin:g}. Worse: than full data. Against fewer "
            "epochs: likewise, against full data at the same number of steps.",
            "CPU time: of the training process, not of workers. Ideal speed-up: 1 / (1 - saved); efficiency: speed-up "
            f"/ ideal. {jobs} run{'s' if jobs > 1 else ''} at a time, threads of each: {self._threads()}; "
            f"{os.cpu_count()} CPU cores.",
        ]
        if self.num_jobs > 1:
            notes.append("Runs at the same time shared the machine: wall times are longer than of one alone.")
        full = self._full
        seconds = report.mean_and_spread(full.seconds)[0] if full else 0.0
        if disturbed := [row for row in self.rows if row.seconds and report.is_disturbed(row, seconds)]:
            names = ", ".join(sorted({row.label for row in disturbed}))
            notes.append(
                f"Disturbed: {names} took less time than what was saved allows, by more than 5 %, so times of theirs, "
                "or of full data, are of a busy machine. Compare CPU times, or run again on an idle machine."
            )
        return notes + [f"{label} at {ratio:g}: {why}" for (label, ratio), why in self.unreachable.items()]

    def _threads(self) -> str:
        found = sorted({run["threads"] for run in self.runs if "threads" in run})
        return ", ".join(map(str, found)) or "-"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the verdicts: each row's difference to full data, its interval and the margin.

        Args:
            path: File to write, by suffix png, pdf or svg. None: none is written.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        figure = plots.verdicts(self.rows, self.verdicts, self.metric, self.margin)
        if path is not None:
            plots.save(figure, Path(path))
        return figure

    def to_pandas(self) -> DataFrame:
        """Return one line per run: method, ratio, seed, metric, saved, seconds, cpu_seconds, status.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Expected pandas, but it is not installed. Run `pip install 'lightning-prune[compare]'`."
            ) from error
        return pd.DataFrame([
            {
                "method": run["label"],
                "ratio": run["ratio"],
                "seed": run["seed"],
                self.metric: run.get("metrics", {}).get(self.metric),
                **{name: run.get(name) for name in report.CSV_COLUMNS},
                "status": "finished" if "metrics" in run else self.failed.get(run["name"], "not run"),
            }
            for run in self.runs
        ])  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """Write results.csv, results.md, a page of the methods side by side, and the pictures; return the paths.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed; all but the pictures are written then.
        """
        written = [folder / "results.csv", folder / "results.md"]
        report.write_csv(self.runs, self.failed, self.metric, written[0])
        parts = ["# Comparison of pruning methods\n", self.table, *(f"{note}\n" for note in self.notes)]
        if self.failed:
            parts.append("Failed runs:\n")
            parts.append("".join(f"- `{name}`: {reason}\n" for name, reason in self.failed.items()))
        with atomic_write(written[1]) as file:
            file.write("\n".join(parts).encode())
        written += write_page(self.runs, folder)
        pictures = {"verdicts.png": self.plot()}
        pictures |= plots.pictures(self.rows, self.runs, self.metric, lower=self.lower)
        return written + [plots.save(figure, folder / name) for name, figure in pictures.items()]
