"""Samples that are trained and never give a loss, as fully masked ones, hold no places of those that do."""

from __future__ import annotations

import pytest
import torch

from lightning_prune import (
    UCB,
    AlignPrune,
    BatchLossScore,
    EpsilonGreedy,
    ImportanceSampling,
    InfoBatch,
    OrderDP,
    RePB,
)
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.session import Session
from lightning_prune.testing.simulation import Script, ScriptedTable
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of

pytestmark = pytest.mark.filterwarnings("ignore:AlignPrune.window=.")

N, MASKED, EPOCHS = 256, 64, 12
SCRIPT = Script.make(N, EPOCHS)
METHODS = {
    "OrderDP": lambda: OrderDP(seed=0),
    "EpsilonGreedy": lambda: EpsilonGreedy(every_n_epochs=2, seed=0),
    "UCB": lambda: UCB(every_n_epochs=2, seed=0),
    "ImportanceSampling": lambda: ImportanceSampling(seed=0),
    "RePB": lambda: RePB(target_keep=0.6, seed=0),
    "InfoBatch": lambda: InfoBatch(anneal_ratio=1, seed=0),
    "AlignPrune": lambda: AlignPrune(OrderDP(), window=4, seed=0),
    "BatchLossScore": lambda: BatchLossScore(OrderDP(), seed=0),
}


def run(method, masked, *, until=EPOCHS, limit=None, state=None):
    """Train on losses of which the ``masked`` ones ``(n,)`` are missing; return the session and its selections."""
    session = Session(ScriptedTable(SCRIPT), method, seed=0)
    session.draw_from(PlanBatchSampler(PlanSampler(N, shuffle=True, seed=0), 16, False))
    session.table.max_epochs = EPOCHS
    if state is None:
        session.start(N, "cpu")
    else:
        session.restore(state, N, "cpu")
    selections = []
    while session.table.epoch < until:
        session.begin_epoch()
        selections.append(session.table.selected.clone())
        for batch_idx, drawn in enumerate(session.batches):
            if batch_idx == limit:
                break
            session.begin_step(batch_idx)
            ids = torch.tensor(drawn)
            losses, _, *rest = SCRIPT.step(session.table.epoch, ids)
            session.step.record(losses, ~masked[ids], *rest)
            session.end_step(batch_idx)
        session.end_epoch()
    return session, selections


@pytest.mark.parametrize("name", METHODS)
def test_their_places_go_to_others(name):
    """From the fourth epoch on they are a smaller part of what is trained than of the data."""
    masked = torch.arange(N) % 4 == 1
    session, selections = run(METHODS[name](), masked)
    assert torch.equal(session.table.unanswered, masked)
    assert session.table.losses[masked].isnan().all()  # never recorded
    late = torch.stack(selections[4:]).double().sum(0)
    assert late[masked].sum() <= 0.25 * late.sum()
    if name == "OrderDP":
        assert late[masked].sum() <= 0.1 * late.sum()


@pytest.mark.parametrize("name", METHODS)
def test_none_of_them_changes_nothing(name):
    """A column that is all False is that of no such sample, bit for bit."""
    nobody = torch.zeros(N, dtype=torch.bool)
    plain, selections = run(METHODS[name](), nobody)
    assert plain.table.unanswered is None
    first, before = run(METHODS[name](), nobody, until=1)
    first.table._columns["unanswered"] = nobody.clone()
    session, after = run(METHODS[name](), nobody, state=first.state_dict(save_rng=False))
    assert all(map(torch.equal, before + after, selections))
    assert torch.equal(session.table.losses, plain.table.losses)


def test_one_that_gives_a_loss_at_last_is_known():
    masked = torch.arange(N) < MASKED
    first, _ = run(OrderDP(1.0, 0.9, seed=0), masked, until=3)
    session, selections = run(
        OrderDP(1.0, 0.9, seed=0), torch.zeros_like(masked), state=first.state_dict(save_rng=False), until=4
    )
    known = selections[0] & masked
    assert known.any()
    assert session.table.losses[known].isfinite().all()
    assert not session.table.unanswered[known].any()


def test_what_no_batch_had_is_unknown():
    """A limit of the batches leaves samples out that were selected: they still come first."""
    nobody = torch.zeros(N, dtype=torch.bool)
    session, selections = run(OrderDP(1.0, 0.5, seed=0), nobody, until=4, limit=4)
    assert session.table.unanswered is None
    unknown = torch.ones(N, dtype=torch.bool)
    first, _ = run(OrderDP(1.0, 0.5, seed=0), nobody, until=1, limit=4)
    unknown = first.table.losses.isnan()
    assert unknown.sum() == N - 64
    assert (selections[1] & unknown).sum() == selections[1].sum()


def test_losses_that_are_no_numbers_are_recorded():
    """They were given: such samples stay, as the warning says."""

    class NaNs(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            return self.weighted_loss(torch.where(batch[2] < 4, torch.nan, losses)).nan_to_num() * 0 + losses.mean()

    trainer = make_trainer(OrderDP(seed=0))
    with pytest.warns(UserWarning, match="NaN or infinite"):
        trainer.fit(NaNs(), make_loader())
    assert registry_of(trainer).unanswered is None


def test_through_the_trainer():
    class Masked(Model):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(self.losses(batch), mask=batch[2] % 4 > 0)

    trainer, model = make_trainer(Keep(1.0, 0.5)), Masked()
    trainer.fit(model, make_loader())
    registry = registry_of(trainer)
    assert registry.unanswered.sum() == 10
    assert not any(i % 4 == 0 for i in model.epoch_ids(1))
    assert "unanswered" in registry.to_dict()
