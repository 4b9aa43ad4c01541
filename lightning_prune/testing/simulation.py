"""Runs of a method on given losses: no model, no Trainer, hundreds in a second, so that laws can be tested."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune.core.method import Method
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.session import Session
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable

EPOCHS = 5
STANDARD_ERRORS = 5.0
"""What two means may differ by: by chance, a sound method would be refused once in thousands."""


@final
@dataclass(frozen=True)
class Script:
    """What each sample shows in each epoch.

    Attributes:
        losses: ``(epochs, n)``.
        logits: ``(epochs, n, 2)``.
        features: ``(epochs, n, 3)``.
        targets: ``(n,)``.
    """

    losses: Tensor
    logits: Tensor
    features: Tensor
    targets: Tensor

    @classmethod
    def make(cls, num_samples: int, epochs: int = EPOCHS) -> Script:
        """Return losses that fall over the epochs, of samples of which some are harder than others."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(epochs, num_samples, 2, generator=generator)
        features = torch.randn(epochs, num_samples, 3, generator=generator)
        targets = torch.randint(2, (num_samples,), generator=generator)
        hardness = torch.randn(num_samples, generator=generator)
        noise = torch.randn(epochs, num_samples, generator=generator)
        losses = (hardness + 0.3 * noise - 0.2 * torch.arange(epochs)[:, None]).exp()
        return cls(losses, logits, features, targets)

    def permute(self, order: Tensor) -> Script:
        """Return that of the data set whose i-th sample is the one at ``order[i]`` of this one."""
        return Script(
            self.losses[:, order], self.logits[:, order], self.features[:, order], self.targets.index_select(0, order)
        )

    def first_losses(self, values: Tensor, where: Tensor) -> Script:
        """Return that in which the samples ``where`` ``(n,)`` have other losses ``(n,)`` in the first epoch."""
        return replace(self, losses=torch.cat([torch.where(where, values, self.losses[:1]), self.losses[1:]]))

    def step(self, epoch: int, ids: Tensor) -> tuple[Any, ...]:
        """Return what a step records of samples."""
        return (
            self.losses[epoch, ids],
            None,
            self.logits[epoch, ids],
            self.targets[ids],
            self.features[epoch, ids],
            None,
        )


@final
class ScriptedTable(SampleTable):
    """The state of a run on a script.

    Attributes:
        script: What samples show.
        trained: How often each sample was trained ``(n,)``.
        trained_later: The same without the first epoch.
        mass: Sum of the weights that it was trained with ``(n,)``.
    """

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.trained = torch.zeros(len(script.targets))
        self.trained_later = torch.zeros(len(script.targets))
        self.mass = torch.zeros(len(script.targets))

    def refresh_losses(self, indices: Tensor) -> Tensor:
        """Return the running epoch's losses."""
        return self.script.losses[self.epoch, indices].float()

    def mean_loss(self, loader: DataLoader[Any]) -> Tensor:
        """Return the mean of the running epoch's losses: whatever is loaded, it is like the training set."""
        return self.script.losses[self.epoch].double().mean()

    def facts(self) -> dict[str, Tensor]:
        """Return all that is known of each sample, ``(..., n)`` float64, a value for NaN included."""
        table = {name: values for name, values in self.to_dict().items() if name != "indices"}
        table |= {"trained": self.trained, "mass": self.mass}
        return {name: values.double().nan_to_num(-1.0) for name, values in table.items()}


def simulate(
    method: Method, script: Script, seed: int, batch_size: int | None = None, **run: Any
) -> Iterator[ScriptedTable]:
    """Run a method on a script; yield the table at each epoch's start and at the end.

    Args:
        method: The method.
        script: What samples show, epoch by epoch; a run that goes on longer begins again with the first.
        seed: Seed of the draws.
        batch_size: Samples in a batch. None: all; then nothing depends on who shares a batch.
        run: ``drop_last``, and attributes of the table: ``max_steps``, and another ``max_epochs`` than the script's.
    """
    epochs, num_samples = script.losses.shape
    table = ScriptedTable(script)
    session = Session(table, method, seed=seed)
    sampler = PlanSampler(num_samples, shuffle=True, seed=seed)
    batches = PlanBatchSampler(sampler, batch_size or num_samples, run.pop("drop_last", False))
    session.draw_from(batches)
    table.max_epochs = epochs
    table.__dict__.update(run)
    session.start(num_samples, "cpu")
    while not table.moment(table.epoch).is_over:
        yield table
        epoch = table.epoch % epochs
        session.begin_epoch()
        steps = math.inf if table.max_steps is None else table.max_steps - table.global_step
        for batch_idx, drawn in enumerate(itertools.islice(batches, None if steps == math.inf else int(steps))):
            ids = torch.tensor(drawn)
            session.begin_step(batch_idx)
            if session.picks_now():
                probed = StepRecord()
                probed.record(*script.step(epoch, ids))
                ids = ids[session.pick(probed)]
            session.step.record(*script.step(epoch, ids))
            weights = session.step.weights
            table.trained[ids] += 1
            table.trained_later[ids] += float(epoch > 0)
            table.mass[ids] += 1.0 if weights is None else weights
            session.end_step(batch_idx)
        table.global_step += session.open_epoch.batches_done
        session.end_epoch()
    yield table


def end_of(method: Method, script: Script, seed: int) -> ScriptedTable:
    """Return the table at the end of a run on a script."""
    *_, table = simulate(method, script, seed)
    return table


def assert_same_law(
    first: list[dict[str, Tensor]], second: list[dict[str, Tensor]], order: Tensor, leave_out: Collection[str] = ()
) -> None:
    """Assert that facts of independent runs have equal means; sample i of the second is ``order[i]`` of the first.

    What is not random has no variance, and must be equal up to rounding. Facts named in ``leave_out`` may differ.
    """
    for name in first[0].keys() - set(leave_out):
        one = torch.stack([facts[name][..., order] for facts in first])
        other = torch.stack([facts[name] for facts in second])
        variance = torch.cat([one, other]).var(0)
        bound = STANDARD_ERRORS * (variance * (1 / len(one) + 1 / len(other))).sqrt()
        difference = (one.mean(0) - other.mean(0)).abs()
        rounding = 1e-5 * (1 + one.abs().amax(0))
        where = (difference > bound + rounding).nonzero().tolist()
        assert not where, f"`{name}` depends on where in the data set a sample is, at {where}"
