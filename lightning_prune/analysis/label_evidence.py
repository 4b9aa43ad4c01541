"""What a run shows of its labels, in constant memory a sample: sums over the epochs that trained it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_prune.analysis.label_doubt import Task, label_doubt
from lightning_prune.analysis.label_rows import first_rows

STATE_VERSION = 1
_POWER = 1.5
"""An epoch weighs as this power of its skill. By trial: `docs/label-issues.md`."""
_LEAST_SKILL = 0.02
_TINY = 1e-12
_PRIOR = 0.3
"""How much a sample is held to be like all others beforehand, in epochs of usual weight and spread."""
_ROWS_AT_ONCE = 1 << 17


@final
class LabelEvidence:
    r"""Sums over the epochs that trained a sample; they cost the same whether it was trained once or a hundred times.

    A sample is compared with all others in each epoch e that trained it: the epoch's log-odds d
    (:func:`~lightning_prune.analysis.label_doubt.label_doubt`) count by how far they are above the epoch's mean, in
    units of its spread,

    .. math:: z_i = \frac{\sum_e w_e (d_{ie} - \mu_e)}{\sum_e w_e \sigma_e + 0.3\, \overline{w \sigma}}, \qquad
              d_i = \bar\mu + \bar\sigma z_i,

    with sums over the epochs that trained sample i, and the mean and spread of an epoch over all samples, each by what
    is last known of it. So a sample that was only trained early, when all look doubtful, is not called wrong for that,
    and one that was only trained late does not look right for that; what was hardly trained stays near the mean. For a
    sample that was always trained it is the weighted mean of its log-odds, but for the small constant.

    An epoch weighs :math:`w = s^{1.5}`, where its skill s is the share by which its predictions are nearer to the
    labels than the labels' mean is: 1 - mean squared error / variance, the Brier skill score where they are
    probabilities.

    Args:
        num_samples: Length of the dataset.
        task: What the labels are.

    Attributes:
        state: Tensors ``(n, ...)`` by name, empty before the first epoch: ``targets``, ``visits``, ``losses``,
            ``outputs``, and for each label ``doubt``, ``scale`` and ``last``.
        levels: Over the epochs, sums of w, of w times the mean, of w times the spread, and the number; ``(4, ...)``.
        left_out: Rows that had no label, no loss, or predictions that are not finite.
    """

    def __init__(self, num_samples: int, task: Task) -> None:
        self.num_samples = num_samples
        self.task = task
        self.state: dict[str, Tensor] = {}
        self.levels: Tensor | None = None
        self.left_out = 0

    def fold(self, rows: dict[str, Tensor]) -> None:
        """Take in an epoch: the rows of all ranks, see :func:`~lightning_prune.analysis.label_rows.read_rows`.

        A sample that comes several times counts by its first row in the order of the visit.
        """
        self.left_out += int((rows["ids"] < 0).sum())
        rows = first_rows(rows)
        ids = rows["ids"]
        if len(ids) == 0:
            return
        self._allocate(rows)
        chosen = {name: rows.get(name) for name in ("classes", "given")}
        doubt = label_doubt(self.task, rows["outputs"], rows["targets"], **chosen)
        state = self.state
        state["targets"][ids] = rows["targets"]
        state["last"][ids] = doubt
        known = ~state["last"].isnan()
        known = known if known.dim() == 1 else known[:, 0]
        last = state["last"][known].double()
        level, spread = last.mean(0).float(), last.std(0, correction=0).float()
        weight = _skill(self.task, rows).clamp(_LEAST_SKILL, 1) ** _POWER
        assert self.levels is not None  # noqa: S101  (narrowing)
        self.levels += torch.stack([weight, weight * level, weight * spread, torch.ones_like(level)])
        state["doubt"][ids] += weight * (doubt - level)
        state["scale"][ids] += weight * spread
        state["visits"][ids] += 1
        for name in ("losses", "margins", "given"):
            if name in rows:
                state[name][ids] += rows[name]
        if "classes" in rows:
            self._merge(ids, rows["classes"], rows["outputs"])
        else:
            state["outputs"][ids] += rows["outputs"]

    def _allocate(self, rows: dict[str, Tensor]) -> None:
        """Have a state, on the device of the rows."""
        device = rows["ids"].device
        if self.state:
            self.state = {name: values.to(device) for name, values in self.state.items()}
            self.levels = None if self.levels is None else self.levels.to(device)
            self.grow(self.num_samples)
            return
        each = rows["targets"].shape[1:]
        self.levels = torch.zeros(4, *each, dtype=torch.float32, device=device)

        def column(*shape: int, fill: float = 0, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((self.num_samples, *shape), fill, dtype=dtype, device=device)

        self.state = {"targets": column(*each, dtype=rows["targets"].dtype), "visits": column(dtype=torch.int32)}
        self.state |= {name: column(*each) for name in ("doubt", "scale")}
        self.state["last"] = column(*each, fill=torch.nan)
        self.state |= {name: column() for name in ("losses", "margins", "given") if name in rows}
        self.state["outputs"] = column(rows["outputs"].shape[1])
        if "classes" in rows:
            self.state["classes"] = column(rows["classes"].shape[1], fill=-1, dtype=torch.int32)

    def _merge(self, ids: Tensor, classes: Tensor, probs: Tensor) -> None:
        """Add the probabilities of an epoch's highest classes to those kept, and keep the highest sums."""
        state = self.state
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            rows, new, more = ids[part], classes[part], probs[part]
            old, sums = state["classes"][rows], state["outputs"][rows]
            same = new[:, :, None] == old[:, None, :]
            sums = sums + (same * more[:, :, None]).sum(1)
            everyone = torch.cat([sums, more.masked_fill(same.any(2), 0)], 1)
            state["outputs"][rows], kept = everyone.topk(old.shape[1], dim=1)
            state["classes"][rows] = torch.cat([old, new], 1).gather(1, kept)

    def grow(self, num_samples: int) -> None:
        """Take in samples that were appended to the dataset."""
        self.num_samples = num_samples
        for name, values in self.state.items():
            if more := num_samples - len(values):
                fill = {"last": torch.nan, "classes": -1}.get(name, 0)
                self.state[name] = torch.cat([values, values.new_full((more, *values.shape[1:]), fill)])

    def columns(self) -> dict[str, Tensor]:
        """Return what :func:`~lightning_prune.analysis.label_issues` is given, by the names of its arguments.

        Means are NaN where a sample was never trained; its doubt is that of all labels.

        Raises:
            ValueError: If no sample was.
        """
        if self.levels is None:
            raise ValueError("Expected at least one epoch with recorded labels, but got none.")
        state, (weight, level, spread, epochs) = self.state, self.levels
        visits = state["visits"]
        means = ("losses", "margins", "given")
        found: dict[str, Tensor] = {name: state[name] / visits for name in means if name in state}
        found["outputs"] = state["outputs"] / visits[:, None]
        stands_out = state["doubt"] / (state["scale"] + _PRIOR * spread / epochs).clamp(min=_TINY)
        found["doubt"] = level / weight + spread / weight * stands_out
        found |= {name: state[name] for name in ("targets", "classes") if name in state}
        return {**found, "visits": visits}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain tensors on the CPU and numbers."""
        return {
            "version": STATE_VERSION,
            "task": self.task,
            "num_samples": self.num_samples,
            "left_out": self.left_out,
            "levels": None if self.levels is None else self.levels.cpu().clone(),
            "state": {name: values.cpu().clone() for name, values in self.state.items()},
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> LabelEvidence:
        """Return what :meth:`state_dict` was taken of."""
        evidence = cls(state["num_samples"], state["task"])
        evidence.left_out, evidence.levels = state["left_out"], state["levels"]
        evidence.levels = None if evidence.levels is None else evidence.levels.clone()
        evidence.state = {name: values.clone() for name, values in state["state"].items()}
        return evidence


def _skill(task: Task, rows: dict[str, Tensor]) -> Tensor:
    """Return the share of the labels' variance that the predictions explain, for each label of a multi-label task."""
    outputs, targets = rows["outputs"], rows["targets"]
    if task != "multiclass":
        labels = targets.float()
        errors = (outputs if labels.dim() == 2 else outputs.squeeze(1)) - labels
        if task == "regression":  # a few wild targets are not to make all epochs look alike
            error, spread = errors.abs().median(0).values, (labels - labels.median()).abs().median()
            return 1 - (error / spread.clamp(min=_TINY)) ** 2
        return 1 - errors.square().mean(0) / labels.var(0, correction=0).clamp(min=_TINY)
    own = targets.long()
    given = rows["given"] if "given" in rows else outputs.gather(1, own[:, None]).squeeze(1)
    error = (outputs.square().sum(1) - 2 * given + 1).mean()
    shares = torch.bincount(own).float() / len(own)
    return 1 - error / (1 - shares.square().sum()).clamp(min=_TINY)
