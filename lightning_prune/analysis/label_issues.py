"""Which labels are probably wrong: the rule, from what a run has seen of each sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_prune.analysis.label_doubt import TASKS, Task, label_doubt
from lightning_prune.core.checks import check_choice


def label_issues(
    targets: Tensor,
    outputs: Tensor,
    *,
    task: Task = "multiclass",
    doubt: Tensor | None = None,
    classes: Tensor | None = None,
    given: Tensor | None = None,
    losses: Tensor | None = None,
    margins: Tensor | None = None,
    visits: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Rank labels by how likely they are wrong.

    A score is a logistic function of the log-odds ``doubt``, which compare a sample with all others in each epoch that
    trained it (`LabelIssues` collects them), and with the other samples of its label: how often labels of one class are
    really another's is estimated from all together, so that a class that is hard is not called wrong for that. The
    score is 0.5 at the estimated number of wrong labels: those whose doubt lies above the cut that parts all doubts
    best in two groups (Otsu), and whose mean prediction is another label.

    Args:
        targets: Labels: class ids ``(n,)``, integer; 0 or 1 ``(n, C)`` of ``"multilabel"`` and ``(n,)`` of
            ``"binary"``; numbers ``(n,)`` of ``"regression"``.
        outputs: Mean predictions over the epochs, or predictions of a model that was not trained on these samples:
            probabilities ``(n, C)``, of ``"binary"`` those of label 1 ``(n, 1)``, of ``"regression"`` numbers
            ``(n, 1)``. NaN rows: never trained.
        task: What the labels are.
        doubt: Log-odds ``(n,)`` that the label is wrong, of ``"multilabel"`` ``(n, C)``. None: from ``outputs`` alone,
            :func:`~lightning_prune.analysis.label_doubt.label_doubt`.
        classes: Classes ``(n, K)``, integer, that the columns of ``outputs`` are of, below 0 where there is none. None:
            all.
        given: Mean probability ``(n,)`` of the label, needed with ``classes``.
        losses: Mean loss ``(n,)``, for the table.
        margins: Mean margin ``(n,)``, the area under the margin of AUM by epoch, for the table.
        visits: Epochs ``(n,)`` that trained the sample, for the table.

    Returns:
        Columns of equal length on the CPU, the most suspicious label first:

        - ``index``: sample id, int64; of ``"multilabel"``, where each label has a row, beside it ``class``
        - ``given`` and ``suggested``: int64, of ``"regression"`` float32. Suggested is the likeliest label; where the
          score is above 0.5, the likeliest other one
        - ``score``: float32 in [0, 1]; above 0.5: counted as wrong
        - evidence: ``doubt``, ``given_prob`` and ``suggested_prob`` (mean probabilities), of ``"regression"``
          ``residual``; and ``margin``, ``loss``, ``epochs``, as far as they were given

    Raises:
        TypeError: If something is not a tensor.
        ValueError: If the task is unknown, or labels and outputs do not fit it.

    References:
        Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020. Otsu, "A
        Threshold Selection Method from Gray-Level Histograms", IEEE Transactions on Systems, Man, and Cybernetics 1979.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8]])
        >>> found = label_issues(torch.tensor([0, 0, 1, 1, 1, 1]), probs)
        >>> found["index"][0], found["given"][0], found["suggested"][0], int((found["score"] > 0.5).sum())
        (tensor(2), tensor(1), tensor(0), 1)
    """
    _check(task, targets, outputs, classes, given)
    known = outputs.isfinite().all(1)
    if doubt is None:
        doubt = torch.zeros(targets.shape, dtype=torch.float32, device=outputs.device)
        chosen = {
            name: None if value is None else value[known] for name, value in (("classes", classes), ("given", given))
        }
        if bool(known.any()):
            doubt[known] = label_doubt(task, outputs[known], targets[known], **chosen)
            doubt[~known] = doubt[known].mean(0)
    more = {"margin": margins, "loss": losses, "epochs": visits}
    columns = {name: values for name, values in more.items() if values is not None}
    if task == "multiclass":
        labels = _classes(targets.long(), outputs.float(), classes, given)
    elif task == "regression":
        labels = _numbers(targets.float(), outputs[:, 0].float())
    else:
        each = 1 if targets.dim() == 1 else targets.shape[1]
        columns = {name: values.repeat_interleave(each) for name, values in columns.items()}
        labels = _zeros_and_ones(targets, outputs.float())
    doubt = doubt.flatten().float().cpu()
    labels = {name: values.cpu() for name, values in labels.items()}
    differs, other = labels.pop("differs"), labels.pop("other", None)
    score, counted = _scores(doubt, differs & (doubt > 0 if task == "regression" else True))
    if other is not None:
        for name, values in (("suggested", other), ("suggested_prob", labels.pop("other_prob"))):
            labels[name] = torch.where(counted, values, labels[name])
    order = doubt.argsort(descending=True, stable=True)
    first = ("index", "class", "given", "suggested")
    table = {name: labels[name] for name in first if name in labels} | {"score": score, "doubt": doubt}
    table |= labels | {name: values.cpu() for name, values in columns.items()}
    return {name: values[order] for name, values in table.items()}


def _classes(targets: Tensor, probs: Tensor, classes: Tensor | None, given: Tensor | None) -> dict[str, Tensor]:
    """Return given, likeliest and likeliest other classes."""
    if classes is None:
        classes = torch.arange(probs.shape[1], device=probs.device).expand_as(probs)
    is_own = classes == targets[:, None]
    probs = probs.nan_to_num(0).masked_fill(classes < 0, -1)
    given = (probs * is_own).sum(1) if given is None else given.float().nan_to_num(0)
    best = probs.masked_fill(is_own, -1).max(1)
    other = classes.gather(1, best.indices[:, None]).squeeze(1).long()
    other, value = torch.where(best.values < 0, targets, other), best.values.clamp(min=0)
    differs = value > given
    return {
        "index": torch.arange(len(targets)),
        "given": targets,
        "suggested": torch.where(differs, other, targets),
        "given_prob": given,
        "suggested_prob": torch.where(differs, value, given),
        "other": other,
        "other_prob": value,
        "differs": differs,
    }


def _zeros_and_ones(targets: Tensor, probs: Tensor) -> dict[str, Tensor]:
    """Return given and likelier labels, each label of a sample in a row of its own."""
    labels, num, each = targets.flatten().long(), len(targets), probs.shape[1]
    ones = probs.flatten().nan_to_num(0.5)
    own = torch.where(labels == 1, ones, 1 - ones)
    differs = own < 0.5
    columns = {"index": torch.arange(num).repeat_interleave(each)}
    if targets.dim() == 2:
        columns["class"] = torch.arange(each).repeat(num)
    suggested, likeliest = torch.where(differs, 1 - labels, labels), torch.maximum(own, 1 - own)
    columns |= {"given": labels, "suggested": suggested, "given_prob": own, "suggested_prob": likeliest}
    return {**columns, "other": 1 - labels, "other_prob": 1 - own, "differs": differs}


def _numbers(targets: Tensor, predictions: Tensor) -> dict[str, Tensor]:
    """Return given and predicted numbers."""
    suggested = torch.where(predictions.isfinite(), predictions, targets)
    residual = targets - suggested
    ids = torch.arange(len(targets))
    return {"index": ids, "given": targets, "suggested": suggested, "residual": residual, "differs": residual != 0}


def _scores(doubt: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores ``(n,)``, 0.5 between what is counted as wrong and what is not, and which are counted."""
    number = int((differs & (doubt > _best_cut(doubt))).sum())
    falling = doubt.sort(descending=True).values
    if number == 0:
        cut = falling[0] + 1
    elif number == len(doubt):
        cut = falling[-1] - 1
    else:
        cut = (falling[number - 1].double() + falling[number]) / 2
    score = (doubt.double() - cut).sigmoid().float()
    return score, score > 0.5


def _best_cut(values: Tensor) -> Tensor:
    """Return the cut between two groups of values ``(n,)`` whose means are the farthest apart, by the groups' sizes."""
    rising = values.double().sort().values
    below, n = rising.cumsum(0), len(rising)
    if n == 1:
        return rising[0]
    sizes = torch.arange(1, n, device=rising.device)
    gap = (below[-1] - below[:-1]) / (n - sizes) - below[:-1] / sizes
    place = (sizes * (n - sizes) * gap.square()).argmax()
    return (rising[place] + rising[place + 1]) / 2


def _check(task: Task, targets: Tensor, outputs: Tensor, classes: Tensor | None, given: Tensor | None) -> None:
    """Raise unless labels and outputs are what the task has."""
    check_choice("task", task, TASKS)
    for name, value in (("targets", targets), ("outputs", outputs)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected `{name}` to be a tensor, but got {type(value).__name__}.")
    num = len(targets) if targets.dim() else 0
    columns = outputs.shape[1] if outputs.dim() == 2 else 0
    shape = (num, columns) if task == "multilabel" else (num,)
    fits = num > 0 and targets.shape == shape and outputs.dim() == 2 and len(outputs) == num
    if not fits or columns < (2 if task == "multiclass" and classes is None else 1):
        raise ValueError(
            f"Expected `targets` and `outputs` (n, C) of a {task} task, for the same n >= 1 samples, but got "
            f"{tuple(targets.shape)} and {tuple(outputs.shape)}."
        )
    if (classes is None) != (given is None) or (classes is not None and classes.shape != outputs.shape):
        got = "only one of them" if classes is None or given is None else tuple(classes.shape)
        raise ValueError(
            f"Expected `classes`, of the shape of `outputs`, {tuple(outputs.shape)}, together with `given`, or "
            f"neither, but got {got}."
        )
    if task == "multiclass":
        _check_class_ids(targets, None if classes is not None else columns)
    elif task != "regression" and bool((other := (targets != 0) & (targets != 1)).any()):
        raise ValueError(
            f"Expected `targets` of a {task} task to be 0 or 1, but {int(other.sum())} are not, such as "
            f"{targets[other][0].item()}. For class ids or numbers, name another `task`."
        )


def _check_class_ids(targets: Tensor, num_classes: int | None) -> None:
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"Expected `targets` to be class ids of an integer dtype, but got {targets.dtype}. Pass `targets.long()`, "
            "or another `task` if they are none."
        )
    wrong: Any = (targets < 0) if num_classes is None else (targets < 0) | (targets >= num_classes)
    if bool(wrong.any()):
        high = "C" if num_classes is None else num_classes
        raise ValueError(
            f"Expected `targets` to be class ids in [0, {high}), but {int(wrong.sum())} are not, such as "
            f"{int(targets[wrong][0])}. Leave samples without a label out."
        )
