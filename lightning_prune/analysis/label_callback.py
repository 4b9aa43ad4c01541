"""Wrong labels as a by-product of a fit."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from lightning_prune.analysis.label_doubt import TASKS, Task
from lightning_prune.analysis.label_evidence import STATE_VERSION, LabelEvidence
from lightning_prune.analysis.label_issues import label_issues
from lightning_prune.analysis.label_rows import check_given, check_step, gather_rows, guess_task, join_rows, read_rows
from lightning_prune.analysis.label_table import SUFFIXES, save_issues
from lightning_prune.core.checks import StateMismatchError, check_choice
from lightning_prune.core.export import check_table_path, check_writable
from lightning_prune.core.names import Names, sample_names
from lightning_prune.core.step import StepRecord
from lightning_prune.trainer.base import TrainerCallback
from lightning_prune.trainer.mixin import WeightedLossMixin
from lightning_prune.trainer.registry import ScoreRegistry

_STEPS = 32
"""Steps noted before they are condensed to what is kept of them: the small kernels then cost next to nothing a step."""


@final
class LabelIssues(TrainerCallback):
    """Finds wrong labels while a model trains, beside any pruning method or alone.

    The module passes what it has at hand, ``self.weighted_loss(losses, logits=logits, targets=y)``; nothing else
    changes, and there is no further forward pass. In each epoch the predictions of all trained samples together tell
    how often labels of one class are really another's, and so how doubtful each label is; a sample's score is the mean
    over the epochs that trained it, as far as it stands out in each: see
    :func:`~lightning_prune.analysis.label_issues`.

    What is kept of a sample does not grow with the epochs. With C classes it is ``28 + 4 C`` bytes, and 96 bytes where
    C is more than 32 (then of the 8 likeliest classes); ``8 + 17 C`` of a multi-label task, 28 of a regression. During
    an epoch there is as much again for each sample that it trains, which the ranks exchange at its end. All is on the
    module's device, and the columns are the same in one process and in several.

    Args:
        task: ``"multiclass"``: class ids ``(B,)`` beside logits ``(B, C)``. ``"binary"``: 0 or 1 beside one logit.
            ``"multilabel"``: 0 or 1 ``(B, C)`` beside logits ``(B, C)``; each label of each sample has a row of its
            own. ``"regression"``: numbers ``(B,)`` beside predictions ``(B,)`` or ``(B, 1)``, passed as ``logits``.
            ``"auto"``: what the first step's shapes and types say; one logit is ``"binary"`` if its targets are all 0
            or 1.
        save_to: File to write at the end of the fit, see :meth:`save`. None: write nothing.
        names: What to call a sample in that file: a function of its id, or one name for each. None: the dataset's
            ``samples``, ``imgs``, ``filenames`` or ``files``, if it has such.
        required: Whether a module that does not pass logits and targets, or others than these tasks have, is refused.
            False: then nothing is found.

    Attributes:
        evidence: What was collected.
        dataset: The training dataset of the last fit, for names.

    Raises:
        ValueError: If ``task`` or the suffix of ``save_to`` is unknown; in the first step, if logits or targets are
            missing or do not fit the task.

    Example:
        >>> import lightning.pytorch as L
        >>> from lightning_prune import InfoBatch
        >>> issues = LabelIssues(save_to="issues.csv")
        >>> trainer = L.Trainer(callbacks=[InfoBatch(), issues], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        task: Literal["auto", "multiclass", "binary", "multilabel", "regression"] = "auto",
        save_to: str | PathLike[str] | None = None,
        names: Names | None = None,
        *,
        required: bool = True,
    ) -> None:
        check_choice("task", task, ("auto", *TASKS))
        self.task = task
        self.save_to = None if save_to is None else check_table_path(save_to, SUFFIXES)
        self.names = names
        self.required = required
        self.evidence: LabelEvidence | None = None
        self.dataset: Dataset[Any] | None = None
        self._kind: Task | None = None  # the task, once it is known
        self._open: int | None = None
        self._position = 0  # rows of this rank's open epoch that are condensed
        self._steps: list[tuple[Tensor, ...]] = []
        self._rows: list[dict[str, Tensor]] = []
        self._pending: dict[str, Any] | None = None
        self._started = False
        self._registry: ScoreRegistry | None = None
        self._rank, self._world_size = 0, 1
        self._issues: dict[str, Tensor] | None = None
        self._written: list[str] = []

    def issues(self) -> dict[str, Tensor]:
        """Return a table of all labels, the most suspicious first: see :func:`~lightning_prune.analysis.label_issues`.

        Samples that were never trained have the doubt of the mean, and 0 ``epochs``.

        Raises:
            RuntimeError: If no epoch has ended yet.
        """
        if self._issues is None:
            evidence = self.evidence
            if evidence is None or not evidence.state:
                raise RuntimeError(
                    "Expected an epoch with recorded labels, but there is none yet. Run `trainer.fit` with "
                    "`LabelIssues()` among the callbacks."
                )
            columns = {name: values.cpu() for name, values in evidence.columns().items()}
            self._issues = label_issues(**columns, task=evidence.task)
        return dict(self._issues)

    @property
    def num_issues(self) -> int:
        """Estimated number of wrong labels: the first rows of :meth:`issues`, those with a score above 0.5."""
        return int((self.issues()["score"] > 0.5).sum())

    def suggestions(self, min_score: float = 0.5) -> dict[int, int | float]:
        """Return the suggested label of each sample whose score is above ``min_score``, by sample id.

        For `lightning_prune.data.Relabelled`. Of a multi-label task there is none: several labels have one id.

        Raises:
            ValueError: If the task is multi-label.
        """
        columns = self.issues()
        if "class" in columns:
            raise ValueError(
                "Expected one label for each sample, but the task is multi-label. Use the columns `index`, `class` and "
                "`suggested` of `issues()`."
            )
        chosen = columns["score"] > min_score
        return dict(zip(columns["index"][chosen].tolist(), columns["suggested"][chosen].tolist(), strict=True))

    def doubts(self) -> Tensor | None:
        """Return the score of each sample's label ``(n,)``, by sample id; None: none is known, or samples have several.

        What :meth:`issues` has in its order: above 0.5, the label is counted as wrong.
        """
        if self.evidence is None or not self.evidence.state or "class" in self.issues():
            return None
        columns = self.issues()
        return torch.empty_like(columns["score"]).index_copy_(0, columns["index"], columns["score"])

    def sample_names(self) -> list[str] | None:
        """Return what to call each sample, by id; None: the dataset has no names."""
        if self.dataset is None:
            return None
        return sample_names(self.dataset, self.names)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the table, whole or not at all.

        Args:
            path: ``.csv``; ``.parquet`` (extra ``export``); or ``.npz``: a score file, for `StaticPruning`.

        Returns:
            The path.

        Raises:
            ValueError: If the suffix is another one.
            RuntimeError: If no epoch has ended yet.
        """
        return save_issues(self.issues(), path, self.sample_names())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the registry, which knows which samples a batch has; refuse what cannot work."""
        if stage != "fit":
            return
        if not isinstance(pl_module, WeightedLossMixin):
            if not self.required:
                return
            name = type(pl_module).__name__
            raise MisconfigurationException(
                f"Expected a module with `WeightedLossMixin` for LabelIssues, but `{name}` does not have it. Write "
                f"`class {name}(WeightedLossMixin, LightningModule)`, and in `training_step` "
                "`return self.weighted_loss(losses, logits=logits, targets=targets)`."
            )
        if self.save_to is not None and trainer.is_global_zero:
            check_writable(self.save_to, what="table of labels")
        self._registry, self._written = ScoreRegistry.attach(trainer, pl_module), []
        self._rank, self._world_size = trainer.global_rank, trainer.world_size

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh, or from a checkpoint."""
        if self._registry is None or not self._registry.takes_part:
            return
        self._started = True
        self.dataset = getattr(self._registry.planned_loader.original, "dataset", None)
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._restore(state)
        elif trainer.current_epoch == 0:
            self.evidence, self._open, self._kind = None, None, None
            self._clear()

    def _clear(self) -> None:
        self._steps, self._rows, self._position, self._issues = [], [], 0, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the step recorded; every few steps condense it."""
        registry = self._registry
        if registry is None or registry.session.running is None:
            return  # the rest of an epoch that was none of ours
        if self._open not in (None, trainer.current_epoch):  # resumed from a checkpoint of an epoch's last batch
            self._end_epoch()
        self._open = trainer.current_epoch
        if batch is not None and registry.step.losses is not None:
            try:
                self._note(registry.step)
            except ValueError:
                if self.required:
                    raise
                self._open = self._registry = None  # of a module that does not pass what it takes, nothing is found
                return
        if len(self._steps) >= _STEPS:
            self._condense()

    def _note(self, step: StepRecord) -> None:
        """Copy what a step recorded: its tensors may be reused by the next one."""
        losses = step.recorded_losses
        if self._kind is None:
            given = check_given(step.logits, step.targets)
            self._kind = guess_task(*given) if self.task == "auto" else self.task
        logits, targets = check_step(self._kind, step.logits, step.targets, len(losses))
        self._steps.append(tuple(values.clone() for values in (step.indices, losses, logits, targets)))

    def _condense(self) -> None:
        """Turn the steps noted into rows, numbered in the order of the visit on all ranks; no host sync."""
        if not self._steps or self._kind is None:
            return
        indices, losses, logits, targets = (torch.cat(values) for values in zip(*self._steps, strict=True))
        self._steps = []
        rows = read_rows(self._kind, indices.to(losses.device), losses, logits, targets)
        place = torch.arange(self._position, self._position + len(indices), device=losses.device)
        self._rows.append({**rows, "place": place * self._world_size + self._rank})
        self._position += len(indices)

    def _end_epoch(self) -> None:
        """Bring the epoch's rows of all ranks into the evidence: the same on every rank."""
        self._condense()
        rows, kind, registry = join_rows(self._rows), self._kind, self._registry
        if self._world_size > 1:
            kind, rows = gather_rows(kind, rows, self._world_size)
        self._clear()
        self._open, self._kind = None, kind
        if not rows or kind is None or registry is None:
            return
        if self.evidence is None:
            self.evidence = LabelEvidence(registry.num_samples, kind)
        before = self.evidence.left_out
        self.evidence.grow(registry.num_samples)
        self.evidence.fold(rows)
        if self.evidence.left_out and not before and self.required:
            rank_zero_warn(
                f"{self.evidence.left_out} of {len(rows['ids'])} samples of an epoch are left out by LabelIssues: "
                "their target is no class id of the logits, or their loss is masked or not finite."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the epoch."""
        if self._open is not None:
            self._end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        registry = self._registry
        if self.save_to is None or registry is None or not registry.takes_part:
            return
        if getattr(trainer, "fast_dev_run", False):
            return
        if trainer.is_global_zero:
            self.save(self.save_to)
            self._written = [f"table of labels '{self.save_to}', of which about {self.num_issues:,} are wrong"]
        trainer.strategy.barrier()

    @property
    def leaves(self) -> list[str]:
        """The table of labels, once it is written, in words for the last lines of `fit`."""
        return self._written

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded; called on every rank, and collective in a DDP run in the middle of an epoch."""
        if self._pending is not None:
            return self._pending
        self._condense()
        rows, kind = join_rows(self._rows), self._kind
        if self._world_size > 1 and self._open is not None:
            kind, rows = gather_rows(kind, rows, self._world_size)
        return {
            "version": STATE_VERSION,
            "open": self._open,
            "kind": kind,
            "evidence": None if self.evidence is None else self.evidence.state_dict(),
            "position": self._position,
            "rows": {name: values.cpu() for name, values in rows.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts; in a run that goes on, as after a search, go back to it at once."""
        if self._started:
            self._restore(state_dict)
        else:
            self._pending = dict(state_dict)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["version"] > STATE_VERSION:
            raise StateMismatchError(
                f"Expected LabelIssues state of version <= {STATE_VERSION}, but got {state['version']}. It was written "
                "by a newer lightning-prune: upgrade to resume it."
            )
        kind = state["kind"]
        if self.task != "auto" and kind not in (None, self.task):
            raise StateMismatchError(
                f"Expected the state of LabelIssues(task={self.task!r}), but got that of {kind!r}. Resume with that "
                "task."
            )
        self._clear()
        self._open, self._kind, self._position = state["open"], kind, state["position"]
        self.evidence = None if state["evidence"] is None else LabelEvidence.restored(state["evidence"])
        if state["rows"] and self._rank == 0 and self._registry is not None:  # rank 0 brings all ranks' rows
            device = self._registry.losses.device
            self._rows = [{name: values.to(device) for name, values in state["rows"].items()}]
        if state["rows"]:  # which may be of another number of processes
            self._position = -(-(int(state["rows"]["place"].max()) + 1) // self._world_size)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Expect nothing more of other ranks, which may be gone."""
        self._world_size = 1

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the registry."""
        self._started = False
        self._registry = None
        self._rank, self._world_size = 0, 1

    def __repr__(self) -> str:
        return f"LabelIssues(task={self.task!r})"
