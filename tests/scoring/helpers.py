"""A tiny classifier that notes every batch that it was scored by, and passes what scores need."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune import WeightedLossMixin
from tests.helpers import PlainModel


class ScoredModel(WeightedLossMixin, PlainModel):
    """Notes ``(epoch, indices, losses, logits, targets, features)`` of each step; ``passes`` says what it hands on."""

    def __init__(self, passes: tuple[str, ...] = ("logits", "targets", "features"), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.passes = passes
        self.steps: list[tuple[int, dict[str, Tensor]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, targets, indices = batch
        logits = self.layer(self.dropout(features))
        losses = F.cross_entropy(logits, targets, reduction="none")
        step = {"losses": losses, "logits": logits, "targets": targets, "features": features}
        self.steps.append((self.current_epoch, {"indices": indices, **{k: v.detach() for k, v in step.items()}}))
        return self.weighted_loss(losses, **{name: step[name] for name in self.passes})


def replay(model: ScoredModel, tracker: Any, num_samples: int = 40) -> Tensor:
    """Feed the noted batches to a tracker."""
    tracker.num_samples, epoch = num_samples, 0
    for step_epoch, step in model.steps:
        while epoch < step_epoch:
            tracker.end_epoch()
            epoch += 1
        tracker.update(step["indices"], **{name: step[name] for name in tracker.needs})
    tracker.end_epoch()
    return tracker.compute()


def all_trackers() -> list[Any]:
    from lightning_prune.scoring import (
        AUM,
        DUAL,
        EL2N,
        TDDS,
        DynUnc,
        Entropy,
        Forgetting,
        GraNd,
        LeastConfidence,
        Margin,
        SmallLoss,
    )

    return [
        TDDS(window=3),
        Forgetting(),
        EL2N(num_epochs=3),
        GraNd(),
        AUM(),
        Entropy(),
        LeastConfidence(),
        Margin(),
        SmallLoss(),
        DynUnc(window=2),
        DUAL(window=2),
    ]


def seeded_model(**kwargs: Any) -> ScoredModel:
    torch.manual_seed(9)
    return ScoredModel(**kwargs)
