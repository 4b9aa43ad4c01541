"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016; Ducoffe & Precioso, 2018): the distance to the decision boundary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_prune.core.checks import check_int
from lightning_prune.trainer.probe import evaluating


def deepfool(model: nn.Module, inputs: Tensor, max_iter: int = 50) -> Tensor:
    """Return the squared norm of the smallest perturbation, to first order, that changes the prediction.

    Repeatedly: with ``f_k = z_k - z_k0`` and ``w_k`` its gradient by the input, take the class with the least
    ``|f_k| / ||w_k||`` and step by ``|f_k| / ||w_k||^2 w_k``, until the prediction is no longer k0.

    Args:
        model: Maps inputs to logits ``(B, C)``, C >= 2. It is run in eval mode and left as it was.
        inputs: ``(B, ...)``, floating point.
        max_iter: Most steps; samples not flipped by then have the norm reached.

    Returns:
        Scores ``(B,)``, float32; low: close to the boundary, kept.

    Raises:
        TypeError: If ``inputs`` is not a floating-point tensor.
        ValueError: If there are fewer than two classes.

    Note:
        C backward passes a step, for the samples not yet flipped. No overshoot is added.

    References:
        Moosavi-Dezfooli et al., "DeepFool: A Simple and Accurate Method to Fool Deep Neural Networks", CVPR 2016,
        arXiv:1511.04599. Ducoffe and Precioso, "Adversarial Active Learning for Deep Networks: a Margin Based
        Approach", 2018, arXiv:1802.09841.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> deepfool(model, torch.tensor([[3.0], [-1.0]]))
        tensor([9., 1.])
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = f"{inputs.dtype} tensor" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"Expected `inputs` to be a floating-point tensor, but got {got}.")
    check_int("max_iter", max_iter, low=1)
    with evaluating(model), torch.enable_grad():
        return _perturb(model, inputs.detach(), max_iter)


def _perturb(model: nn.Module, inputs: Tensor, max_iter: int) -> Tensor:
    total = torch.zeros_like(inputs)
    active = torch.arange(len(inputs), device=inputs.device)
    original: Tensor | None = None
    for step in range(max_iter + 1):
        x = (inputs[active] + total[active]).requires_grad_()
        logits = model(x)
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"Expected logits of shape (B, C) with C >= 2, but got {tuple(logits.shape)}.")
        if original is None:
            original = logits.argmax(1)
        still = logits.argmax(1) == original[active]
        if step == max_iter or not bool(still.any()):
            break
        steps = _boundary_step(logits, x, original[active])
        active, steps = active[still], steps[still]
        total[active] += steps
    return total.float().flatten(1).square().sum(1)


def _boundary_step(logits: Tensor, x: Tensor, original: Tensor) -> Tensor:
    """Return the step ``(B, ...)`` to the nearest linearised boundary."""
    num_classes = logits.shape[1]
    gradients = torch.stack(
        [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=c + 1 < num_classes)[0] for c in range(num_classes)], 1
    ).flatten(2)
    rows = torch.arange(len(x), device=x.device)
    normals = gradients - gradients[rows, original][:, None]
    gaps = (logits - logits[rows, original][:, None]).detach().abs()
    lengths = normals.norm(dim=2)
    distances = torch.where(lengths > 0, gaps / lengths, torch.inf)
    distances[rows, original] = torch.inf
    nearest = distances.argmin(1)
    scale = torch.where(lengths[rows, nearest] > 0, gaps[rows, nearest] / lengths[rows, nearest].square(), 0)
    return (scale[:, None] * normals[rows, nearest]).view_as(x)
