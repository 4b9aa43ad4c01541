"""GLISTER (Killamsetty et al., AAAI 2021): samples whose gradient step lowers the validation loss most."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_int, check_number
from lightning_prune.scoring._inputs import check_points, check_targets


def glister(
    logits: Tensor,
    features: Tensor,
    targets: Tensor,
    k: int,
    *,
    val_logits: Tensor | None = None,
    val_features: Tensor | None = None,
    val_targets: Tensor | None = None,
    learning_rate: float = 0.1,
    rounds: int = 15,
    step: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Choose greedily by the product of a sample's last-layer gradient with that of the validation loss.

    After each round the validation logits take one gradient step on what is chosen so far, so that later choices add
    to it.

    Args:
        logits: ``(n, C)`` of a trained model.
        features: Input of its last linear layer ``(n, D)``.
        targets: Class ids ``(n,)``.
        k: Samples to choose, in [1, n].
        val_logits: ``(m, C)`` of a validation set, with ``val_features`` and ``val_targets``. None: the training set.
        val_features: ``(m, D)``.
        val_targets: ``(m,)``.
        learning_rate: Length of that step.
        rounds: How often the validation gradient is taken. 1: the k largest products; k: after every choice.
        step: Step by the ``"mean"`` gradient of those chosen, or by their ``"sum"``, which overshoots for large k.

    Returns:
        Ids ``(k,)``, int64, in the order of choice. Ties go to the lower id.

    Raises:
        TypeError: If an input is not of the expected type.
        ValueError: If an element is not finite, a shape is wrong, an argument is out of range, or only some of the
            validation inputs are given.

    Note:
        A benchmark passes the update under a misspelled name, so its result is that of ``rounds=1``.

    References:
        Killamsetty et al., "GLISTER: Generalization based Data Subset Selection for Efficient and Robust Learning",
        AAAI 2021, arXiv:2012.10630.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.1]])
        >>> glister(logits, torch.ones(3, 1), torch.tensor([0, 0, 0]), 1).tolist()
        [1]
    """
    grads, features, _ = _output_grads(logits, features, targets)
    check_int("k", k, low=1, high=len(grads))
    check_int("rounds", rounds, low=1)
    check_number("learning_rate", learning_rate, "a number > 0", float(learning_rate) > 0)
    check_choice("step", step, ("mean", "sum"))
    given = (val_logits, val_features, val_targets)
    if val_logits is None or val_features is None or val_targets is None:
        if any(value is not None for value in given):
            names = [
                name for name, value in zip(("logits", "features", "targets"), given, strict=True) if value is None
            ]
            raise ValueError(
                "Expected `val_logits`, `val_features` and `val_targets` together, or none of them, but got no "
                f"{' and no '.join(f'`val_{name}`' for name in names)}."
            )
        val_logits, val_features, val_targets = logits, features, targets
    _, val_features, val_onehot = _output_grads(val_logits, val_features, val_targets)
    shifted = val_logits = val_logits.double()
    free = torch.ones(len(grads), dtype=torch.bool, device=grads.device)
    order: list[Tensor] = []
    chosen = 0
    while chosen < k:
        residual = shifted.softmax(1) - val_onehot
        gains = grads @ residual.mean(0) + ((grads @ (residual.T @ val_features / len(residual))) * features).sum(1)
        gains = torch.where(free, gains, -torch.inf)
        picks = gains.argsort(descending=True, stable=True)[: min(math.ceil(k / rounds), k - chosen)]
        order.append(picks)
        chosen += len(picks)
        free[picks] = False
        ids = torch.cat(order)
        scale = learning_rate / (len(ids) if step == "mean" else 1)
        shifted = val_logits - scale * (grads[ids].sum(0) + val_features @ (features[ids].T @ grads[ids]))
    return torch.cat(order)


def _output_grads(logits: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``softmax(z) - onehot(y)``, the features and the one-hot targets, float64."""
    logits = check_points("logits", logits, min_columns=2).double()
    features = check_points("features", features, rows=len(logits)).double()
    onehot = F.one_hot(check_targets(targets, rows=len(logits)), logits.shape[1]).double()
    return logits.softmax(1) - onehot, features, onehot
