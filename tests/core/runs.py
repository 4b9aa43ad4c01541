"""A run as plain calls of the session, without a Trainer, a loader, or Lightning."""

from __future__ import annotations

import torch

from lightning_prune.core.method import Method
from lightning_prune.core.plan import Selection
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.session import Session
from lightning_prune.core.step import weighted_loss
from lightning_prune.core.table import SampleTable

NUM_SAMPLES, BATCH_SIZE = 22, 4


class Table(SampleTable):
    """A table of a run that never asks for losses outside its steps."""

    def refresh_losses(self, indices):
        raise NotImplementedError

    def mean_loss(self, loader):
        raise NotImplementedError


class Hardest(Method):
    """Trains, after the first epoch, the hardest samples and some others, each with a weight of its own."""

    weighs_losses = True
    record_names = ("double",)

    def __init__(self, share=0.5, **kwargs):
        super().__init__(**{"warmup_epochs": 1, **kwargs})
        self.share = share

    def setup_columns(self, registry):
        registry.add_column("visits", dtype=torch.int32)

    def select(self, registry, epoch, generator):
        k = round(self.share * registry.num_samples)
        ids = registry.scores.argsort(descending=True, stable=True)[:k]
        others = torch.randperm(registry.num_samples, generator=generator)[:3]
        ids = torch.cat([ids, others]).unique()
        return Selection(ids, 1 + ids / 8)

    def per_sample(self, step):
        return {"double": 2 * step.losses}

    def on_epoch_recorded(self, registry, record):
        assert torch.equal(record.extra["double"], 2 * record.losses)
        registry.column("visits")[record.indices] += 1

    def metrics(self, registry):
        return {"visits": float(registry.column("visits").sum())}


def make_session(
    method=None, *, num_samples=NUM_SAMPLES, batch_size=BATCH_SIZE, rank=0, world_size=1, table=None, **kwargs
):
    """Return a session before its start."""
    session = Session(Table() if table is None else table, method, **kwargs)
    sampler = PlanSampler(num_samples, shuffle=True, seed=session.seed, rank=rank, world_size=world_size)
    session.draw_from(PlanBatchSampler(sampler, batch_size, drop_last=False))
    return session


def losses_of(ids, weight):
    """Return losses that no two samples share, and that change as ``weight`` does."""
    return ((torch.tensor(ids) * 7 % NUM_SAMPLES + 1) / 4 - weight) ** 2


class Run:
    """A number trained by a session; notes the batches and their weights."""

    def __init__(self, method=None, *, state=None, weight=0.0, **kwargs):
        self.session = make_session(method, **kwargs)
        self.weight = torch.tensor(weight, requires_grad=True)
        self.seen = []
        num_samples = self.session.batches.sampler.total
        if state is None:
            self.session.start(num_samples, "cpu")
        else:
            self.session.restore(state, num_samples, "cpu")

    def steps(self):
        """Begin the epoch, unless it was restored, and train it, one step a turn; the caller ends it."""
        session = self.session
        running = session.begin_epoch() if session.running is None else session.running
        running.batch_sampler.skip = running.batches_to_skip
        for batch_idx, ids in enumerate(session.batches, running.batches_done):
            session.begin_step(batch_idx)
            weights = session.step.weights
            self.seen.append((session.table.epoch, ids, None if weights is None else weights.tolist()))
            loss = weighted_loss(session.step, losses_of(ids, self.weight))
            (gradient,) = torch.autograd.grad(loss, self.weight)
            with torch.no_grad():
                self.weight -= 0.01 * gradient
            session.end_step(batch_idx)
            yield batch_idx

    def epoch(self):
        """Train what is left of an epoch, and end it."""
        for _ in self.steps():
            pass
        return self.session.end_epoch()
