"""Influence functions (Koh & Liang, ICML 2017) of the last layer: what leaving out one sample would change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_int, check_number
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring._inputs import check_points, check_targets

_CHUNK = 2**24
"""Elements of a block of vectors, shown to the samples of the Hessian."""
_TOLERANCE = 1e-6
_MOST_ROUNDS = 200


def influence(
    logits: Tensor,
    features: Tensor,
    targets: Tensor,
    *,
    kind: Literal["norm", "loss"] = "norm",
    val_logits: Tensor | None = None,
    val_features: Tensor | None = None,
    val_targets: Tensor | None = None,
    damping: float = 0.01,
    hessian_samples: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return how much each sample matters to the last layer, or to the validation loss.

    With ``G_i`` the gradient of sample i's cross entropy by the last layer's weight and bias, and ``H`` the Hessian of
    the mean one plus ``damping`` on its diagonal: ``"norm"`` is ``|| H^-1 G_i ||``, the length of the influence on the
    parameters (Eq. 1; n times the change if the sample were left out). ``"loss"`` is ``G_val . H^-1 G_i``, the negative
    influence on the mean validation loss (Eq. 2): how fast it falls as the sample's weight grows.

    Args:
        logits: ``(n, C)`` of a trained model.
        features: Input of its last linear layer ``(n, D)``.
        targets: Class ids ``(n,)``.
        kind: ``"norm"``, the baseline of pruning papers, or ``"loss"``.
        val_logits: ``(m, C)`` of a validation set, for ``"loss"``, with ``val_features`` and ``val_targets``. None: the
            training set.
        val_features: ``(m, D)``.
        val_targets: ``(m,)``.
        damping: Added to the Hessian's diagonal, > 0: a weight decay of the last layer, or what makes up for one.
        hessian_samples: Samples, at random, by which the Hessian is estimated; all, if there are no more.
        generator: CPU generator of their draw. None: a fresh one, seeded from the system's entropy.

    Returns:
        Scores ``(n,)``, float32; high: the sample matters, kept.

    Raises:
        TypeError: If an input is not of the expected type.
        ValueError: If an element is not finite, a shape is wrong, an argument is out of range, or only some of the
            validation inputs are given, or given for ``"norm"``.

    Note:
        The paper takes all parameters, and ``H^-1 v`` by conjugate gradients or stochastically. Here it is the last
        layer alone, as pruning papers do it, by conjugate gradients: its Hessian is exact and never negative.

    References:
        Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, arXiv:1703.04730.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
        >>> scores = influence(logits, torch.eye(3), torch.tensor([0, 1, 0]))
        >>> scores.argmax()  # the label that contradicts the model
        tensor(2)
    """
    check_choice("kind", kind, ("norm", "loss"))
    given = (val_logits, val_features, val_targets)
    if any(value is not None for value in given) and (kind == "norm" or any(value is None for value in given)):
        raise ValueError(
            "Expected no `val_logits`, `val_features` and `val_targets` with kind='norm', which uses no validation "
            "set. Leave them out, or pass `kind='loss'`."
            if kind == "norm"
            else "Expected `val_logits`, `val_features` and `val_targets` together, or none of them, but got only some."
        )
    probs, errors, inputs = read_head(logits, features, targets)
    if kind == "norm":
        blocks = parameter_influence(probs, errors, inputs, damping, hessian_samples, generator)
        return torch.cat([block.flatten(1).norm(dim=1) for block in blocks]).float()
    if val_logits is None or val_features is None or val_targets is None:
        val_errors, val_inputs = errors, inputs
    else:
        _, val_errors, val_inputs = read_head(val_logits, val_features, val_targets)
    direction = (val_errors.T @ val_inputs / len(val_errors))[None]
    probs, sampled = _hessian_rows(probs, inputs, hessian_samples, generator)
    (solved,) = solve_hessian(direction, probs, sampled, damping)
    scores: Tensor = (errors * (inputs @ solved.T)).sum(1).float()
    return scores


def read_head(logits: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities and ``probs - onehot`` ``(n, C)``, and features with a one for the bias, all float64.

    The gradient of sample i by the last layer is ``errors[i] (x) inputs[i]``.
    """
    probs = check_points("logits", logits, min_columns=2).double().softmax(1)
    features = check_points("features", features, rows=len(probs)).double()
    targets = check_targets(targets, rows=len(probs))
    return probs, probs - F.one_hot(targets, probs.shape[1]), F.pad(features, (0, 1), value=1.0)


def parameter_influence(
    probs: Tensor,
    errors: Tensor,
    inputs: Tensor,
    damping: float,
    hessian_samples: int,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Yield ``H^-1 G_i`` ``(m, C, D + 1)``, float64, of all samples, block by block."""
    shown, sampled = _hessian_rows(probs, inputs, hessian_samples, generator)
    size = max(1, _CHUNK // max(shown.numel(), shown.shape[1] * inputs.shape[1]))
    for some_errors, some_inputs in zip(torch.split(errors, size), torch.split(inputs, size), strict=True):
        yield solve_hessian(some_errors[:, :, None] * some_inputs[:, None], shown, sampled, damping)


def _hessian_rows(
    probs: Tensor, inputs: Tensor, hessian_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    check_int("hessian_samples", hessian_samples, low=1)
    if hessian_samples >= len(probs):
        return probs, inputs
    rows = torch.randperm(len(probs), generator=resolve_generator(generator))[:hessian_samples].to(probs.device)
    return probs[rows], inputs[rows]


def solve_hessian(vectors: Tensor, probs: Tensor, inputs: Tensor, damping: float) -> Tensor:
    """Return ``H^-1 v`` of each vector ``(m, C, D + 1)`` by conjugate gradients, all at once.

    They are preconditioned by the Hessian's Kronecker factors, the means of ``A_i`` and of ``x_i x_i^T``: some 20
    rounds then do.

    Args:
        vectors: ``(m, C, D + 1)``, float64.
        probs: Predicted probabilities ``(n, C)``.
        inputs: Features, with a one for the bias ``(n, D + 1)``.
        damping: What is added to the Hessian's diagonal, > 0.
    """
    check_number("damping", damping, "a number > 0", float(damping) > 0)
    n = len(probs)
    left_values, left = torch.linalg.eigh(probs.mean(0).diag() - probs.T @ probs / n)
    right_values, right = torch.linalg.eigh(inputs.T @ inputs / n)
    scale = left_values.clamp(min=0)[:, None] * right_values.clamp(min=0) + damping

    def precondition(values: Tensor) -> Tensor:
        found: Tensor = left @ ((left.T @ values @ right) / scale) @ right.T
        return found

    solution, residual = torch.zeros_like(vectors), vectors.clone()
    search = precondition(residual)
    gain = _dot(residual, search)
    goal = _dot(residual, residual) * _TOLERANCE**2
    for _ in range(_MOST_ROUNDS):
        if bool((_dot(residual, residual) <= goal).all()):
            return solution
        product = multiply_hessian(search, probs, inputs) + damping * search
        length = (gain / _dot(search, product)).nan_to_num_(0)  # a vector of zeros is solved from the start
        solution += length * search
        residual -= length * product
        better = precondition(residual)
        gain, before = _dot(residual, better), gain
        search = better + (gain / before).nan_to_num_(0) * search
    rank_zero_warn(
        f"Influence: conjugate gradients did not reach a relative error of {_TOLERANCE} in {_MOST_ROUNDS} rounds. "
        f"Use a larger `damping` than {damping}."
    )
    return solution


def multiply_hessian(vectors: Tensor, probs: Tensor, inputs: Tensor) -> Tensor:
    """Return the Hessian of the mean cross entropy by the last layer, times vectors ``(m, C, D + 1)``.

    ``mean_i A_i (V x_i) (x) x_i`` with ``A_i = diag(p_i) - p_i p_i^T``: the Hessian is never built.
    """
    changes = probs.T * (vectors @ inputs.T)
    changes -= probs.T * changes.sum(1, keepdim=True)
    return changes @ inputs / len(inputs)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2), keepdim=True)
