"""RePB's Eq. 5 measured: how far losses of states some steps apart differ, beside the bound.

Plain SGD on digits; run with ``python -m examples.experiments.drift [--seeds 3]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from examples.digits.task import DigitsData
from examples.experiments.noise import NoisyModel
from examples.experiments.reporting import add_seeds, seeds_of, spread, table
from examples.experiments.training import quiet
from lightning_prune.analysis import drift_bound, score_drift

RATE, BATCH, STEPS_APART = 0.05, 32, (1, 4, 16, 45)
STAGES = {"epochs 1 and 2": 0, "epochs 19 and 20": 18}
"""By name: the first of the two epochs. An epoch has 45 steps."""


@final
class Stage:
    """What is noted at each step of two epochs: all losses, and the largest gradients of a sample and of a step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.lipschitz = self.longest = 0.0

    def measured(self, steps: int) -> dict[str, float]:
        """Return drifts of all pairs of states so many steps apart, and the bound."""
        pairs = [score_drift(a, b) for a, b in zip(self.losses, self.losses[steps:], strict=False)]
        return {
            "mean drift": sum(pair.mean for pair in pairs) / len(pairs),
            "largest drift": max(pair.largest for pair in pairs),
            "bound": drift_bound(self.lipschitz, self.longest, RATE, steps),
            "decided otherwise": 100 * sum(pair.flipped for pair in pairs) / len(pairs),
        }


def train(seed: int, stages: dict[str, int], *, bounds: bool = True) -> dict[str, Stage]:
    """Train until the last of the stages is over; without bounds no gradients of samples are taken."""
    torch.random.manual_seed(seed)
    data, model, generator = DigitsData(), NoisyModel(), torch.Generator().manual_seed(seed)
    data.setup("fit")
    images, labels = data.train.tensors
    lengths = lengths_of(model, images, labels)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    found = {name: Stage() for name in stages}
    for epoch in range(max(stages.values()) + 2):
        noted = [found[name] for name, first in stages.items() if first <= epoch < first + 2]
        for ids in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            for stage in noted:
                with torch.no_grad():
                    stage.losses.append(F.cross_entropy(model(images), labels, reduction="none"))
                if bounds:
                    stage.lipschitz = max(stage.lipschitz, float(lengths().max()))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[ids]), labels[ids]))
            for stage in noted:
                taken = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
                stage.longest = max(stage.longest, float(torch.cat(taken).norm()))
            optimizer.step()
    return found


def lengths_of(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Return what gives the length of each sample's gradient by all weights ``(n,)``."""

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def lengths() -> Tensor:
        weights = {name: value.detach() for name, value in model.named_parameters()}
        parts = [part.flatten(1) for part in each(weights, images, labels).values()]
        found: Tensor = torch.cat(parts, 1).norm(dim=1)
        return found

    return lengths


def drifts(seeds: range) -> str:
    """Return the table: means and deviations over the seeds."""
    runs = [train(seed, STAGES) for seed in seeds]
    rows = []
    for name in STAGES:
        for steps in STEPS_APART:
            measured = [run[name].measured(steps) for run in runs]
            cells = [spread([one[key] for one in measured], 3) for key in ("mean drift", "largest drift", "bound")]
            flipped = spread([one["decided otherwise"] for one in measured], 1)
            rows.append([f"{name}, {steps} step{'s' if steps > 1 else ''}", *cells, flipped])
    return table(
        ["states apart", "mean drift, nats", "largest drift, nats", "bound of Eq. 5, nats", "decided otherwise, %"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_seeds(parser, 3)
    args = parser.parse_args()
    quiet()
    print(drifts(seeds_of(args)))


if __name__ == "__main__":
    main()
