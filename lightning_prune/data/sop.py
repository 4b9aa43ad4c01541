"""SOP (Liu et al., ICML 2022): over-parameterised label noise, a loss that learns which labels are wrong."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune.core.checks import check_int, check_number
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring._inputs import check_matrix, check_targets

_SMALL = 1e-4


@final
class SOPLoss(nn.Module):
    """Per-sample loss whose own parameters absorb the label noise; any pruning callback composes with it.

    Each sample has ``u`` (1) and ``v`` (C) with ``U = clamp(u^2 y, 0, 1)`` and ``V = clamp(v^2 (1 - y), 0, 1)``, y
    one-hot. The loss is the cross entropy of y with the normalised ``softmax(z) + U - V``, plus
    ``|| onehot(argmax z) + U - V - y ||^2``. The label that a model so trained corrects to is ``argmax z``.

    Args:
        num_samples: Length of the whole dataset: rows are dataset indices, also if a part is pruned.
        num_classes: C >= 2.
        consistency: Weight of the divergence between predictions on a weak and a strong view. SOP+: 0.9.
        balance: Weight of the cross entropy of the uniform distribution with the batch's mean prediction, least where
            that is uniform. SOP+: 0.1.
        generator: CPU generator of the initial values, ``N(0, 1e-8)``. None: a fresh one.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Note:
        The gradients of u and v are sparse; clipping of the gradient's norm must leave them out.

    References:
        Liu et al., "Robust Training under Label Noise by Over-parameterization", ICML 2022, arXiv:2202.14026.

    Example:
        >>> sop = SOPLoss(num_samples=8, num_classes=3)
        >>> losses = sop(torch.zeros(2, 3), torch.tensor([0, 2]), torch.tensor([5, 7]))
        >>> losses  # log 3, and 2 where the prediction, class 0 of a tie, is not the label
        tensor([1.0986, 3.0986], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        consistency: float = 0.0,
        balance: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_int("num_samples", num_samples, low=1)
        check_int("num_classes", num_classes, low=2)
        check_number("consistency", consistency, "a number >= 0", consistency >= 0)
        check_number("balance", balance, "a number >= 0", balance >= 0)
        generator = resolve_generator(generator)
        self.num_classes = num_classes
        self.consistency = consistency
        self.balance = balance
        self.u = nn.Parameter(torch.randn(num_samples, 1, generator=generator, dtype=torch.float32) * 1e-8)
        self.v = nn.Parameter(torch.randn(num_samples, num_classes, generator=generator, dtype=torch.float32) * 1e-8)

    def forward(self, logits: Tensor, targets: Tensor, indices: Tensor, strong_logits: Tensor | None = None) -> Tensor:
        """Return the losses ``(B,)``, for ``self.weighted_loss(losses)``.

        Args:
            logits: ``(B, C)``, of the weak view if there are two.
            targets: Given class ids ``(B,)``, possibly wrong.
            indices: Dataset indices ``(B,)``, int64.
            strong_logits: ``(B, C)`` of the strong view; needed for ``consistency``.

        Raises:
            ValueError: If a shape is wrong or ``strong_logits`` is missing or unused.
        """
        check_matrix("logits", logits, min_columns=self.num_classes)
        targets = check_targets(targets, rows=len(logits))
        if (strong_logits is None) == (self.consistency > 0):
            raise ValueError(
                "Expected `strong_logits`, the logits of a second view, with "
                f"SOPLoss(consistency={self.consistency:g}), but got None. Pass them, or set `consistency=0`."
                if strong_logits is None
                else "Expected no `strong_logits` with SOPLoss(consistency=0), which does not use them. Leave them "
                "out, or give `consistency` a weight > 0."
            )
        logits = logits.float()
        onehot = torch.zeros_like(logits).scatter_(1, targets[:, None], 1)  # `F.one_hot` waits for the device
        u, v = (F.embedding(indices, table, sparse=True) for table in (self.u, self.v))
        right, wrong = (u.square() * onehot).clamp(0, 1), (v.square() * (1 - onehot)).clamp(0, 1)
        probs = logits.softmax(1)
        corrected = F.normalize((probs + right - wrong.detach()).clamp(min=_SMALL), p=1, dim=1).clamp(_SMALL, 1)
        predicted = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
        losses = -(onehot * corrected.log()).sum(1) + (predicted + right - wrong - onehot).square().sum(1)
        if strong_logits is not None:
            views = F.kl_div(strong_logits.float().log_softmax(1), probs.detach(), reduction="none").sum(1)
            losses = losses + self.consistency * views
        if self.balance:
            losses = losses - self.balance * corrected.mean(0).clamp(_SMALL, 1).log().mean()
        return losses

    def param_groups(self, lr_u: float = 10.0, lr_v: float = 100.0) -> list[dict[str, Any]]:
        """Return groups for the SGD that trains the model, without momentum and weight decay.

        Published: 10 and 100 on CIFAR-10, 1 and 10 on CIFAR-100, 0.1 and 1 on WebVision.
        """
        plain = {"momentum": 0.0, "weight_decay": 0.0}
        return [{"params": [self.u], "lr": lr_u, **plain}, {"params": [self.v], "lr": lr_v, **plain}]
