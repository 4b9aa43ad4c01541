"""A Trainer that also finds wrong labels: what ``lightning-prune find-label-issues`` runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from lightning_prune.analysis.label_callback import LabelIssues
from lightning_prune.analysis.label_table import SUFFIXES, summarize_issues
from lightning_prune.core.checks import check_int
from lightning_prune.core.export import check_new, check_table_path
from lightning_prune.core.names import class_names
from lightning_prune.scoring.trainer import ScoringTrainer
from lightning_prune.trainer.private import get_callbacks, set_callbacks


@final
class CommandTrainer(ScoringTrainer):
    """Lightning's Trainer, which can also score a training set, and find wrong labels in it."""

    @contextmanager
    def watching_labels(self) -> Iterator[Callable[[], Tensor | None]]:
        """Have `LabelIssues` look at the labels, where the module passes what it needs."""
        callbacks = get_callbacks(self)
        issues = next((c for c in callbacks if isinstance(c, LabelIssues)), None) or LabelIssues(required=False)
        set_callbacks(self, list(dict.fromkeys([*callbacks, issues])))
        yield issues.doubts

    def find_label_issues(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        output: str = "label_issues.csv",
        top: int = 20,
        ckpt_path: str | None = None,
        overwrite: bool = False,
    ) -> dict[str, Tensor] | None:
        """Train as configured, find labels that are probably wrong, print the most suspicious and write them all.

        The pruning method, if there is one, prunes: it costs the labels nothing. `LabelIssues` is added where the
        configuration has none.

        Args:
            model: The module; its ``training_step`` calls ``self.weighted_loss(losses, logits=..., targets=...)``.
            datamodule: The data. None: the module has loaders of its own.
            output: Table to write: ``.csv``, ``.parquet`` (extra ``export``), or ``.npz``, a score file for
                StaticPruning.
            top: How many labels to print.
            ckpt_path: Checkpoint of a run with `LabelIssues` to resume.
            overwrite: Whether a table that is there already is replaced. False: it is refused, before the training.

        Returns:
            The table, see `LabelIssues.issues`; None in a ``fast_dev_run``, after an interruption, and on ranks other
            than the first.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of range, or the labels are none that can be looked into.
            OSError: If the table cannot be written, or is there already; before the training.
        """
        check_int("top", top, low=0)
        path = check_table_path(output, SUFFIXES)
        if self.is_global_zero and not getattr(self, "fast_dev_run", False):
            check_new(path, "output", overwrite=overwrite, what="table of labels")
        callbacks = get_callbacks(self)
        found = next((callback for callback in callbacks if isinstance(callback, LabelIssues)), None)
        issues = found or LabelIssues()
        if found is None:
            set_callbacks(self, [issues, *callbacks])
        try:
            self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        finally:
            if found is None:
                set_callbacks(self, [callback for callback in get_callbacks(self) if callback is not issues])
        if self.interrupted or not self.is_global_zero or getattr(self, "fast_dev_run", False):
            return None
        columns = issues.issues()
        issues.save(path)
        classes = None if issues.dataset is None else class_names(issues.dataset)
        summary = summarize_issues(columns, names=issues.sample_names(), classes=classes, top=top)
        sys.stdout.write(f"\n{summary}\nWritten to {path}\n")
        return columns
