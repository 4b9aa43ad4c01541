"""What is kept of a training step until its epoch ends, and its way to all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_prune.analysis.label_doubt import Task
from lightning_prune.core.step import ABSENT

MOST_CLASSES = 32
"""With more classes only the mean probabilities of the highest few are kept."""
TOP_CLASSES = 8
"""How many those are."""


def guess_task(logits: Tensor, targets: Tensor) -> Task:
    """Return what kind of labels these are, by their shapes and types; reads the values of floating-point targets.

    Args:
        logits: ``(B, C)``, ``(B, 1)`` or ``(B,)``, as the module passes them.
        targets: Class ids ``(B,)``, integer; or ``(B, C)``, 0 or 1; or numbers ``(B,)``.

    Raises:
        ValueError: If they fit no task; the message says what was given.
    """
    columns = 1 if logits.dim() == 1 else logits.shape[1]
    zero_one = targets.bool() == targets if targets.dtype != torch.bool else torch.ones_like(targets)
    if targets.numel() == len(logits) and columns == 1:
        return "binary" if bool(zero_one.all()) else "regression"
    if targets.dim() == 1 and not targets.is_floating_point() and targets.dtype != torch.bool:
        return "multiclass"
    if targets.shape == logits.shape and bool(zero_one.all()):
        return "multilabel"
    raise ValueError(
        "Expected `targets` to be class ids (B,) of an integer dtype beside `logits` (B, C), or 0 and 1 of the shape "
        f"of `logits`, but got {targets.dtype} {tuple(targets.shape)} beside {tuple(logits.shape)}. Mixed or smoothed "
        "labels (mixup, cutmix) have no one class to doubt: pass the class ids, and the logits of an unmixed view."
    )


def check_given(logits: Tensor | None, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return logits and targets.

    Raises:
        ValueError: If one is missing, or not a tensor with a row for each sample.
    """
    if logits is None or targets is None:
        missing = " and ".join(f"`{n}`" for n, value in (("logits", logits), ("targets", targets)) if value is None)
        raise ValueError(
            f"Expected {missing} for LabelIssues, but got None. Write "
            "`self.weighted_loss(losses, logits=logits, targets=targets)` in `training_step`."
        )
    if logits.dim() not in (1, 2) or targets.dim() not in (1, 2):
        raise ValueError(
            "Expected `logits` (B, C) or (B,) and `targets` (B,) or (B, C) for LabelIssues, one label or one set of "
            f"labels for each sample, but got {tuple(logits.shape)} and {tuple(targets.shape)}. Labels of tokens or "
            "pixels cannot be checked."
        )
    return logits, targets


def check_step(task: Task, logits: Tensor | None, targets: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """Return logits ``(B, C)`` and targets ``(B,)``, or ``(B, C)`` of a multi-label task; looks at shapes only.

    Raises:
        ValueError: If something is missing, or of another shape or type.
    """
    logits, targets = check_given(logits, targets)
    logits = logits[:, None] if logits.dim() == 1 else logits
    if task != "multilabel":
        targets = targets.squeeze(1) if targets.dim() == 2 and targets.shape[1] == 1 else targets
    shape = (rows, logits.shape[1]) if task == "multilabel" else (rows,)
    least, most = {"multiclass": (2, None), "multilabel": (1, None)}.get(task, (1, 1))
    fits = len(logits) == rows and logits.shape[1] >= least and (most is None or logits.shape[1] <= most)
    if not fits or targets.shape != shape:
        columns = f"C) with C >= {least}" if most is None else "1)"
        raise ValueError(
            f"Expected `logits` ({rows}, {columns} and `targets` {shape} of a {task} task, but got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}. See `LabelIssues(task=...)`."
        )
    if task == "multiclass" and (targets.is_floating_point() or targets.dtype == torch.bool):
        raise ValueError(
            f"Expected `targets` to be class ids of an integer dtype, but got {targets.dtype}. Pass `targets.long()`, "
            "or `LabelIssues(task=...)` if they are none."
        )
    return logits, targets


def read_rows(task: Task, indices: Tensor, losses: Tensor, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return what is kept of a batch until its epoch ends, a row for each sample; no host sync.

    Args:
        task: What the labels are.
        indices: Sample ids ``(B,)``, int64.
        losses: ``(B,)``; `ABSENT` marks a sample without one, whose row gets the id -1, as that of a label below 0.
        logits: ``(B, C)``.
        targets: ``(B,)``, or ``(B, C)`` of a multi-label task.

    Returns:
        ``ids`` (B,), ``losses`` (B,), ``targets``, ``outputs`` (B, K) float32; of a multi-class task ``margins`` (B,),
        with more than 32 classes ``classes`` (B, K) int32 and ``given`` (B,), the probability of the target.
    """
    absent, losses, logits = losses <= ABSENT, losses.detach().float(), logits.detach().float()
    rows = {"losses": losses}
    if task == "multiclass":
        known = (targets >= 0) & (targets < logits.shape[1])
        absent = absent | ~known
        targets = torch.where(known, targets, 0).long()
        probs = logits.softmax(1)
        given = probs.gather(1, targets[:, None]).squeeze(1)
        rows |= {"outputs": probs, "margins": given - probs.scatter(1, targets[:, None], -1).amax(1)}
        if logits.shape[1] > MOST_CLASSES:
            top = probs.topk(TOP_CLASSES, dim=1)
            rows |= {"outputs": top.values, "classes": top.indices.int(), "given": given}
    else:
        rows["outputs"] = logits[:, :1] if task == "regression" else logits.sigmoid()
    bad = ~rows["outputs"].sum(1).isfinite() | losses.isnan()
    dtype = {"multiclass": torch.int32, "regression": torch.float32}.get(task, torch.uint8)
    return {"ids": torch.where(absent | bad, -1, indices), "targets": targets.to(dtype), **rows}


def join_rows(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return rows one after another; an empty mapping if there are none."""
    return {name: torch.cat([rows[name] for rows in parts]) for name in (parts[0] if parts else ())}


def gather_rows(task: Task | None, rows: dict[str, Tensor], world_size: int) -> tuple[Task | None, dict[str, Tensor]]:
    """Return the task, and the rows of all ranks, the same on each; collective.

    Raises:
        ValueError: On every rank, if the ranks differ in what they take the task to be.
    """
    layout = {name: (values.dtype, tuple(values.shape[1:])) for name, values in rows.items()}
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, (task, layout, len(rows["ids"]) if rows else 0))
    tasks = {task for task, _, num in everyone if num}
    if len(tasks) > 1:
        raise ValueError(
            f"Expected one kind of labels, but the processes have seen {sorted(tasks)}. Pass `LabelIssues(task=...)`."
        )
    if not tasks:
        return task, {}
    layout, counts = next(layout for _, layout, num in everyone if num), [num for _, _, num in everyone]
    device = rows["ids"].device if rows else _device()
    gathered = {}
    for name, (dtype, shape) in layout.items():
        own = torch.zeros(max(counts), *shape, dtype=dtype, device=device)
        if rows:
            own[: len(rows[name])] = rows[name]
        parts = torch.empty(world_size, *own.shape, dtype=dtype, device=device)
        torch.distributed.all_gather_into_tensor(parts.flatten(0, 1), own)
        gathered[name] = torch.cat([part[:num] for part, num in zip(parts, counts, strict=True)])
    return tasks.pop(), gathered


def _device() -> torch.device:
    """Return where tensors are exchanged, for a rank that has none."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def first_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows by rising id, without those of id -1, and of each sample only the one with the lowest ``place``.

    Sums over them are then the same however many processes had them.
    """
    order = rows["place"].argsort()
    order = order[rows["ids"][order].argsort(stable=True)]
    ids = rows["ids"][order]
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[1:] = ids[1:] != ids[:-1]
    kept = order[is_first & (ids >= 0)]
    return {name: values[kept] for name, values in rows.items() if name != "place"}
