"""How much one epoch's predictions speak against each label: log-odds of another label, of each kind of task."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

Task = Literal["multiclass", "binary", "multilabel", "regression"]
TASKS = ("multiclass", "binary", "multilabel", "regression")

_STAYS = 0.7
"""Share of right labels that the search for the channel starts from."""
_STEPS = 5
_FLOOR = 1e-3
"""Least probability: a network is surer of itself than it is right."""
_LIMIT = 4.0
"""Largest log-odds that one epoch may give: one sure epoch is not to outvote all others."""
_PSEUDO = 5.0
"""Samples of a class that are assumed to be spread over all labels, so that rare confusions are not impossible."""
_MOST_PAIRS = 2048
"""With more classes, wrong labels of a class are taken to be spread evenly: no table of pairs is made."""
_BINS, _LEAST_PER_BIN = 10, 30


def label_doubt(
    task: Task, outputs: Tensor, targets: Tensor, *, classes: Tensor | None = None, given: Tensor | None = None
) -> Tensor:
    """Return the log-odds that each label is wrong, from one set of predictions.

    Labels are taken to have gone through a noisy channel: of class k, a share ``T[k, y]`` is labelled y. With
    probabilities p of a model that learnt such labels, the true class is k with probability
    proportional to ``p[k] T[k, y]``, and T is found from all samples together by a few steps of
    expectation-maximisation. So a class that is often mistaken for the given one weighs more than one that never is,
    and a class whose labels are mostly right is doubted less: the scores of the classes are on one scale.

    Args:
        task: What the labels are.
        outputs: Probabilities ``(m, C)``, or with ``classes`` of some of the classes ``(m, K)``; of ``"binary"`` and
            ``"multilabel"`` those of label 1, ``(m, C)``; of ``"regression"`` predictions ``(m, 1)``.
        targets: Class ids ``(m,)``; of ``"multilabel"`` 0 or 1 ``(m, C)``, of ``"binary"`` ``(m,)``; of
            ``"regression"`` numbers ``(m,)``.
        classes: Classes ``(m, K)``, integer, that the columns are of. None: all, in their order.
        given: Probability ``(m,)`` of the label, with ``classes``.

    Returns:
        ``(m,)`` float32 in [-4, 4], of ``"multilabel"`` ``(m, C)``: log of the probability of the likeliest other label
        over that of the given one; of ``"regression"``, that the target is another sample's.

    References:
        Dawid and Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Applied
        Statistics 1979. Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021,
        whose counts stand for the same channel.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4)
        >>> label_doubt("multiclass", probs, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])).argmax()
        tensor(3)
    """
    if task == "regression":  # bounded without an end, as residuals have none
        found = _residual_odds(outputs[:, 0].float(), targets.float())
        return found / (1 + found.abs() / _LIMIT)
    if task == "multiclass":
        found = _multiclass_odds(outputs.float(), targets.long(), classes, given)
    elif targets.dim() == 1:
        found = _binary_odds(outputs.float(), targets.bool()[:, None]).squeeze(1)
    else:
        found = _binary_odds(outputs.float(), targets.bool())
    return found.clamp(-_LIMIT, _LIMIT)


def _multiclass_odds(probs: Tensor, targets: Tensor, classes: Tensor | None, given: Tensor | None) -> Tensor:
    own = targets[:, None]
    if classes is None:
        num_classes, is_own = probs.shape[1], torch.zeros_like(probs, dtype=torch.bool).scatter_(1, own, True)
        given = probs.gather(1, own).squeeze(1)
    else:
        num_classes, is_own = int(torch.maximum(classes.max(), targets.max())) + 1, (classes == own) | (probs <= 0)
    assert given is not None  # noqa: S101  (narrowing: it comes with the classes)
    given, others = given.float().clamp(min=_FLOOR), probs.clamp(min=_FLOOR).masked_fill(is_own, 0)
    channel = _Channel(num_classes, targets, None if classes is None else classes.long())
    for _ in range(_STEPS):
        stays, moves = given * channel.stays, others * channel.moves
        total = stays + moves.sum(1)
        channel.fit(stays / total, moves / total[:, None])
    return ((others * channel.moves).amax(1) / (given * channel.stays)).log()


@final
class _Channel:
    """What labels of each class have become: shares for each pair of classes, or of many classes only those that stay.

    Args:
        num_classes: C.
        targets: Class ids ``(m,)``.
        classes: Candidates ``(m, K)``. None: all C.
    """

    def __init__(self, num_classes: int, targets: Tensor, classes: Tensor | None) -> None:
        self._num, self._targets, self._classes = num_classes, targets, classes
        self._pairs = classes is None or num_classes <= _MOST_PAIRS
        shape = (num_classes, num_classes) if self._pairs else (num_classes, 1)
        moved = (1 - _STAYS) / max(1, num_classes - 1)
        self._look_up(torch.full(shape, moved, dtype=torch.float32, device=targets.device), _STAYS)

    def _look_up(self, rows: Tensor, stays: Tensor | float) -> None:
        """Take shares by label and class ``(C, C)``, or only of labels that move ``(C, 1)``, for each sample."""
        self.stays: Tensor | float = stays
        if self._classes is None:
            self.moves = rows[self._targets]
        elif self._pairs:
            self.moves = rows[self._targets[:, None], self._classes]
        else:
            self.moves = rows[self._classes].squeeze(2)

    def fit(self, stays: Tensor, moves: Tensor) -> None:
        """Estimate the shares from how likely each label stayed ``(m,)``, and moved from each class ``(m, K)``."""
        num, targets = self._num, self._targets
        kept = stays.new_zeros(num).index_add_(0, targets, stays) + _PSEUDO / num
        if self._classes is None:
            counts = moves.new_zeros(num, num).index_add_(0, targets, moves)
        elif self._pairs:
            cells = (targets[:, None] * num + self._classes).flatten()
            counts = moves.new_zeros(num * num).index_add_(0, cells, moves.flatten()).view(num, num)
        else:
            lost = moves.new_zeros(num).index_add_(0, self._classes.flatten(), moves.flatten())
            lost = lost + _PSEUDO * (1 - 1 / num)
            self._look_up((lost / (lost + kept) / (num - 1))[:, None], (kept / (lost + kept))[targets])
            return
        counts = counts + _PSEUDO / num
        counts.fill_diagonal_(0)
        total = counts.sum(0) + kept  # by true class
        self._look_up(counts / total, (kept / total)[targets])


def _binary_odds(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds ``(m, C)`` of C labels of two classes each, of which each has a channel of its own."""
    other = torch.where(labels, 1 - probs, probs).clamp(_FLOOR, 1 - _FLOOR)
    odds = other / (1 - other)
    leaves = torch.full_like(probs[:1], 1 - _STAYS).expand(2, 1, -1)  # by the true label
    masks = torch.stack([~labels, labels])
    for _ in range(_STEPS):
        moved = odds * _moved_to(labels, leaves)
        wrong = moved / (1 + moved)
        stayed = ((1 - wrong) * masks).sum(1, keepdim=True) + _PSEUDO / 2
        left = (wrong * masks.flip(0)).sum(1, keepdim=True) + _PSEUDO / 2
        leaves = left / (left + stayed)
    return (odds * _moved_to(labels, leaves)).log()


def _moved_to(labels: Tensor, leaves: Tensor) -> Tensor:
    """Return how likely the label ``(m, C)`` is of the other class, over how likely it is of its own."""
    off, on = leaves
    return torch.where(labels, off / (1 - on), on / (1 - off))


def _residual_odds(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the log-odds ``(m,)`` that a target is some other sample's, rather than near its prediction."""
    scales = _local_scale(predictions, targets - predictions)
    spread = torch.maximum(targets.std(correction=0), scales.median())
    ours = _log_normal(targets - predictions, scales)
    others = _log_normal(targets - targets.mean(), spread)
    odds = others - ours
    share = torch.tensor(1 - _STAYS, dtype=torch.float32, device=odds.device)
    for _ in range(_STEPS):
        share = (odds + (share / (1 - share)).log()).sigmoid().mean().clamp(1 / (2 * len(odds)), 0.5)
    return odds + (share / (1 - share)).log()


def _log_normal(residuals: Tensor, scale: Tensor) -> Tensor:
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
    return -0.5 * (residuals / scale).square() - scale.log()


def _local_scale(predictions: Tensor, residuals: Tensor) -> Tensor:
    """Return the spread ``(m,)`` of the residuals of samples with predictions like these: hard ones have larger ones.

    1.4826 times the median size, in up to ten groups of neighbouring predictions; at least a tenth of that of all.
    """
    num = len(predictions)
    num_bins = max(1, min(_BINS, num // _LEAST_PER_BIN))
    sizes = residuals.abs()
    scales = torch.empty_like(sizes)
    for ids in predictions.argsort(stable=True).tensor_split(num_bins):
        scales[ids] = sizes[ids].median()
    return 1.4826 * torch.maximum(scales, 0.1 * sizes.median())
