"""The papers' analyses on digits: ``python -m examples.experiments.analysis [--output docs/analysis.md]``."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from examples.digits.task import DigitsData, DigitsModel
from examples.experiments.drift import drifts
from examples.experiments.reporting import add_seeds, seeds_of, spread, table
from examples.experiments.training import quiet, train
from lightning_prune import (
    InfoBatch,
    OrderDP,
    PruningCallback,
    RandomPruning,
    RePB,
    ScoreRegistry,
    SeTa,
)
from lightning_prune.analysis import Unbiasedness, check_unbiased, limit_density, surrogate_weights, usage_histogram
from lightning_prune.core.plan import Selection
from lightning_prune.functional import ctr_weights, infobatch, orderdp, orderdp_inclusion, repb_resample, repb_retain
from lightning_prune.methods.random import random_subset

EPOCHS, PARTS = 20, 5
Method = Callable[[], PruningCallback]
AT_40: dict[str, Method] = {
    "RandomPruning": lambda: RandomPruning(0.4),
    "InfoBatch": lambda: InfoBatch(0.54, anneal_ratio=1.0),
    "SeTa": lambda: SeTa(0.0, anneal_ratio=1.0),
    "RePB": lambda: RePB(target_keep=0.58),
    "OrderDP": lambda: OrderDP(0.775, 0.775),
}
AT_70: dict[str, Method] = {
    "RandomPruning": lambda: RandomPruning(0.7),
    "InfoBatch": lambda: InfoBatch(0.94, anneal_ratio=1.0),
    "SeTa": lambda: SeTa(0.5, anneal_ratio=1.0),
    "RePB": lambda: RePB(target_keep=0.26),
    "OrderDP": lambda: OrderDP(0.548, 0.548),
}


def train_digits(
    method: PruningCallback, seed: int, epochs: int, **monitored: Any
) -> tuple[list[dict[str, float]], ScoreRegistry, float]:
    """Train a small CNN once; return what the monitor saw, epoch by epoch, the registry and the test accuracy."""
    L.seed_everything(seed, verbose=False)
    return train(method, DigitsModel(width=16), DigitsData(), epochs, **monitored)


def by_part(histories: list[list[dict[str, float]]], key: str) -> list[str]:
    """Return mean and deviation over the runs of a value's mean in each fifth of the training."""
    cells = []
    for part in range(PARTS):
        inside = range(part * EPOCHS // PARTS, (part + 1) * EPOCHS // PARTS)
        means = [
            statistics.fmean([values[key] for values in history if values["epoch"] in inside and key in values])
            for history in histories
        ]
        cells.append(spread(means))
    return cells


@cache
def surrogate() -> str:
    """D.2: the weights of the surrogate loss."""
    rows = []
    for n in (200, 1000, 5000, 50_000, 1_000_000):
        z = torch.arange(1, n + 1, dtype=torch.float64) / n
        gap = (n * orderdp_inclusion(n, 100, 30) - limit_density(z, 100, 30)).abs().max()
        rows.append([f"{n:,}", f"{float(gap):.4f}"])
    limit = table(["n, at s = 100 and q = 30", "largest gap to the limit density"], rows)
    rows = []
    for q in (10, 30, 50, 70, 90, 100):
        weights = surrogate_weights(400, 100, q)
        shares = [f"{float(weights[:k].sum()):.3f}" for k in (40, 100, 200)]
        rows.append([str(q), f"{float(weights.sum() - 1):.0e}", f"{float(weights[0] * 400):.2f}", *shares])
    header = ["q, at n = 400 and s = 100", "sum - 1", "weight of the hardest / uniform"]
    return limit + "\n" + table([*header, "share of the hardest 10 %", "of 25 %", "of 50 %"], rows)


@cache
def unbiasedness() -> str:
    """The expected weighted sum of losses over a selection, against the sum over all samples."""
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 4
    rules: dict[str, Callable[[torch.Generator], Selection]] = {
        "InfoBatch(0.5)": lambda g: infobatch(losses, 0.5, generator=g),
        "InfoBatch(0.9)": lambda g: infobatch(losses, 0.9, generator=g),
        "RandomPruning(0.4, rescale=True)": lambda g: Selection(
            random_subset(1000, 600, generator=g).indices, torch.full((600,), 1000 / 600)
        ),
        "RandomPruning(0.4)": lambda g: random_subset(1000, 600, generator=g),
        "OrderDP(0.775, 0.775), against the full loss": lambda g: orderdp(losses, 775, 600, generator=g),
    }
    checks = {
        name: check_unbiased(rule, losses, 2000, generator=torch.Generator().manual_seed(1))
        for name, rule in rules.items()
    }
    gamma = orderdp_inclusion(1000, 775, 600)
    target = float((gamma * losses.double().sort(descending=True).values).sum())
    against_full = checks["OrderDP(0.775, 0.775), against the full loss"]
    checks["OrderDP(0.775, 0.775), against its surrogate loss"] = replace(against_full, target=target)  # of these draws
    for epochs in (2, 40):
        checks[f"RePB(0.5), after {epochs} epochs"] = repb_epoch(losses, 0.5, epochs, torch.Generator().manual_seed(1))
    rows = [[name, f"{100 * check.relative_bias:+.2f} %", f"{check.z:+.1f}"] for name, check in checks.items()]
    return table(["rule", "bias of the loss sum", "in standard errors"], rows)


def repb_epoch(
    losses: torch.Tensor, ratio: float, epochs: int, generator: torch.Generator, runs: int = 50
) -> Unbiasedness:
    """RePB's weighted sum in the epoch after some others, of runs side by side: windows of 100, losses that stay."""
    everyone = losses.expand(runs, -1)
    inside = torch.ones(everyone.shape, dtype=torch.bool)
    counts = inside.int()
    for epoch in range(epochs):
        places = torch.rand(everyone.shape, generator=generator).masked_fill(~inside, 2).argsort(1).argsort(1)
        windows = places // 100 + 1000 * torch.arange(runs)[:, None]
        after = repb_resample(inside.flatten(), ratio, generator=generator).view_as(inside)
        after[inside] = repb_retain(everyone[inside], windows[inside], ratio, generator=generator)
        inside = after
        weights = ctr_weights(counts.flatten(), epoch + 1).view_as(everyone)
        counts += inside
    weighed = (weights * inside).double()
    sums = (weighed * everyone).sum(1)
    error = float(sums.std()) / runs**0.5
    return Unbiasedness(weighed.mean(0), float(sums.mean()), float(losses.double().sum()), error)


def stability(seeds: range) -> str:
    """D.3, E.2, D.6: Jaccard overlap, cosine and norm of the gradient, by fifths of the training."""
    parts = [f"{100 * i // PARTS}-{100 * (i + 1) // PARTS} %" for i in range(PARTS)]
    rows: dict[str, list[list[str]]] = {"jaccard": [], "grad_cosine": [], "grad_norm_ratio": []}
    for ratio, methods in (("40 %", AT_40), ("70 %", AT_70)):
        for name, make in methods.items():
            runs = [train_digits(make(), s, EPOCHS, gradient_every_n_epochs=2) for s in seeds]
            saved = statistics.fmean([run[1].saved_fraction for run in runs])
            histories = [run[0] for run in runs]
            for key, lines in rows.items():
                lines.append([f"{ratio}, {name}", f"{100 * saved:.0f} %", *by_part(histories, key)])
    header = ["asked, method", "saved", *parts]
    titles = {
        "jaccard": "### Jaccard overlap of consecutive selections (OrderDP, Table 8)\n\n"
        "Uniform draws of a share k overlap by k / (2 - k): 0.43 at 40 % saved, 0.18 at 70 %.\n",
        "grad_cosine": "### Cosine of the pruned to the full-data gradient (OrderDP, Table 11)\n\n"
        "At the weights of the epoch's end, in eval mode, on 512 random samples, every second epoch.\n",
        "grad_norm_ratio": "### Norm of the pruned gradient over that of the full-data gradient\n",
    }
    return "\n".join(f"{titles[key]}\n{table(header, lines)}" for key, lines in rows.items())


def usage(seed: int) -> str:
    """D.4: in how many epochs each sample was selected."""
    rows = []
    for ratio, explore, exploit, epochs in ((30, 0.837, 0.837, 40), (50, 0.707, 0.707, 40), (99, 0.1, 0.1, 200)):
        _, registry, _ = train_digits(OrderDP(explore, exploit), seed, epochs)
        histogram = usage_histogram(registry.counts, epochs)
        tenths = [int(part.sum()) for part in torch.tensor_split(histogram[1:], 10)]
        rows.append([f"{ratio} %", str(epochs), str(int(histogram[0])), *map(str, tenths)])
    parts = [f"{10 * i}-{10 * (i + 1)} %" for i in range(10)]
    return table(["pruned", "epochs", "samples never used", *(f"used in {part}" for part in parts)], rows)


TEXT = """# Analyses

This page is for readers who want to understand what a method selects, and whether its gradient is that of the full
data. It repeats the analyses of the published papers on digits.

Written by `python -m examples.experiments.analysis --output docs/analysis.md` ({minutes:.1f} minutes of CPU time on
one thread; {seeds} seeds). Digits: 1,437 training images, a CNN of {weights:,} weights, {epochs} epochs unless said
otherwise. The functions are in `lightning_prune.analysis`. In a run of your own, the callback
`PruningMonitor(targets="targets", gradient_every_n_epochs=5)` logs them under `prune/`.

## OrderDP's surrogate loss (Appendix D.2, Figures 5-8)

{surrogate}
The density of Proposition 2 is the limit for large n; the gap to it falls like 1 / n. The weights add up to 1. They
become more equal as q rises to s.

## Which rules are unbiased

1,000 losses, 2,000 draws. A rule counts as unbiased if its bias lies within 5 standard errors.

{unbiasedness}
OrderDP is unbiased for its surrogate only, as its Theorem 1 says. InfoBatch's *sum* is unbiased. The paper's Table 10
finds a bias because it divides by the number kept. The toy beside it prints 4.06 for OrderDP, but its chances give 4.24
(exact: 4.26). RePB (50 runs) is unbiased in the long run. At first, its weights do not make up for the samples that are
left out.

## Score context drift (RePB, Eq. 5)

`python -m examples.experiments.drift`, three seeds: one hidden layer of 128 units, plain SGD at 0.05, batches of 32.
The table shows how far the losses of all training samples differ between two states, at most an epoch of 45 steps
apart. "Decided otherwise" is the share of samples below the mean loss in one of the two states only. L and G of the
bound are the largest gradients of a sample and of a step that occurred.

{drift}
The bound holds and is loose. It grows with the number of steps; the drift grows more slowly, and late in training not
at all. The paper's point shows early: over an epoch, 30 % of the samples change to the other side of the mean, over one
step 5 %. Late in training it is 3 % and 1 %: the losses that drift are few and large, far from the mean.

## Stability of selection and gradient (Appendices D.3, D.6, E.2)

As in the paper, no method anneals here. Figures are means ± standard deviations over the seeds, by parts of the
training.

{stability}
- **Overlap.** OrderDP's selections become more alike during training, as in the paper. At 40 % they overlap more than
  InfoBatch's from the second fifth on, also as in the paper. At 70 % they overlap as much as InfoBatch's in the last
  two fifths, and less before; in the paper they overlap more. At first they overlap less than by chance, because
  samples never seen come first.
- **Cosine.** At 70 %, OrderDP is closer to the full gradient than InfoBatch from the third fifth on, as in Table 11,
  but by less than InfoBatch's deviation. At 40 %, InfoBatch is closer here (InfoBatch 0.98-1.00, OrderDP 0.93-0.95); in
  the paper OrderDP is.
- **Norm.** For InfoBatch at 40 % it is close to 1 / (kept share): an unbiased sum over fewer samples. At 70 %, the few
  easy samples that InfoBatch keeps have a weight of 17. There the norm grows to 4-9 times and varies: the instability
  of Appendix D.6.

## Use of the samples by OrderDP (Appendix D.4, Figures 9-11)

{usage}
As in the paper, every sample is used at least once, even at 99 %, and most samples have their own frequency.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_seeds(parser, 5)
    parser.add_argument("--output", type=Path, help="file to write (default: none, it is printed)")
    args = parser.parse_args()
    quiet()
    start = time.process_time()
    parts = {
        "surrogate": surrogate(),
        "unbiasedness": unbiasedness(),
        "drift": drifts(range(args.first_seed, args.first_seed + 3)),
        "stability": stability(seeds_of(args)),
        "usage": usage(args.first_seed),
    }
    minutes = (time.process_time() - start) / 60
    weights = sum(parameter.numel() for parameter in DigitsModel(width=16).parameters())
    text = TEXT.format(**parts, minutes=minutes, seeds=args.seeds, epochs=EPOCHS, weights=weights)
    print(text)
    if args.output is not None:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
