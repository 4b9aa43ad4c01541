"""Kills, signals, interrupts, broken ranks and bad data: nothing is lost but the work since the last checkpoint."""

from __future__ import annotations

import math
import os
import re
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_prune import InfoBatch, RandomPruning, ScoreRegistry
from lightning_prune.core.epoch import RunningEpoch
from lightning_prune.core.plan import Selection
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.step import StepRecord
from lightning_prune.scoring import ScoreRecorder
from lightning_prune.testing import processes
from lightning_prune.testing.method import WaitInLastEpoch
from lightning_prune.testing.task import Outcome, assert_resumed, equal
from tests import contract, ddp_faults
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of
from tests.processes import be_module, forked

TRACKERS = ["AUM", "EL2N", "Forgetting", "TDDS", "DUAL"]
KILLS = math.ceil(int(os.environ.get("SOAK_KILLS", "1")) / len(contract.CASES))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_killed_recorder_ends_as_if_uninterrupted(tmp_path):
    """Score files included; the contract kills runs of every method."""
    processes.skip_without_fork()

    def train(folder, marker):
        checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
        callbacks = [
            ScoreRecorder(TRACKERS, folder / "scores"),
            checkpoint,
            *([WaitInLastEpoch(marker)] * bool(marker)),
        ]
        trainer, model = (
            make_trainer(*callbacks, max_epochs=12 + 4 * KILLS, enable_checkpointing=True),
            Model(None, 0.3),
        )
        torch.manual_seed(4)
        trainer.fit(model, make_loader(), ckpt_path=processes.newest_checkpoint(folder))
        files = sorted(folder.glob("scores/*.npz"))
        scores = {(path.stem, name): values for path in files for name, values in np.load(path).items()}
        return Outcome.of(trainer, model), {key: values for key, values in scores.items() if key[1] != "meta"}

    whole, scores = train(tmp_path / "whole", None)
    (tmp_path / "killed").mkdir()
    killed, its_scores = processes.kill_and_resume(train, tmp_path / "killed", KILLS)
    assert len(killed.seen) < len(whole.seen)
    assert_resumed(whole, killed)
    assert len({name for name, _ in scores}) == len(TRACKERS)
    assert scores.keys() == its_scores.keys()
    for key, values in scores.items():
        np.testing.assert_array_equal(values, its_scores[key], err_msg=str(key))


@pytest.mark.ddp
def test_a_broken_rank_ends_the_run_on_all(tmp_path):
    """As Lightning starts them."""
    said = forked(be_module, "tests.ddp_faults", folder=tmp_path, fails=True)
    assert "the first error, on rank 1" in said


def refused(rank, run, message):
    with pytest.raises((RuntimeError, MisconfigurationException), match=re.escape(message)):
        run()


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (ddp_faults.run_diverging, "in epoch 2 rank(s) [1] differ from rank 0"),
        (ddp_faults.run_shared, "`ModelParallelStrategy` has them share 1 part(s) of the data"),
    ],
)
def test_every_rank_refuses(run, message, tmp_path):
    processes.run_ranks(refused, run, message, folder=tmp_path)


class Interrupted(Model):
    """Stops itself once, in the middle of an epoch."""

    how = None

    def training_step(self, batch, batch_idx):
        if self.how is not None and self.current_epoch == 2 and batch_idx == 3:
            self.how()
        return super().training_step(batch, batch_idx)


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise RuntimeError("boom")


@pytest.mark.parametrize("how", [interrupt, terminate, fail])
@pytest.mark.filterwarnings(
    "ignore:.*(callbacks used to create the checkpoint|was called without a model|no last checkpoint)"
)
def test_interrupts_leave_a_checkpoint_that_resumes_exactly(how, tmp_path):
    def fit(model, ckpt_path=None):
        torch.manual_seed(3)
        callbacks = [InfoBatch(seed=2), OnExceptionCheckpoint(tmp_path)]
        trainer = make_trainer(*callbacks, enable_checkpointing=True, max_epochs=5)
        trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
        return trainer, model

    trainer, whole = fit(Interrupted(dropout=0.2))
    broken = Interrupted(dropout=0.2)
    broken.how = how
    with pytest.raises((SystemExit, KeyboardInterrupt, RuntimeError)):
        fit(broken)
    resumed_trainer, resumed = fit(Interrupted(dropout=0.2), tmp_path / "on_exception.ckpt")
    assert whole.seen[-len(resumed.seen) :] == resumed.seen
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    assert equal(registry_of(trainer).losses, registry_of(resumed_trainer).losses)


@pytest.mark.filterwarnings("ignore:.*losses were NaN or infinite")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize(
    "which", [lambda i: i == 7, lambda i: i % 2 == 0, lambda i: i >= 0], ids=["one", "half", "all"]
)
def test_broken_losses(bad, which):
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            broken = torch.tensor([which(int(i)) for i in batch[2]])
            loss = self.weighted_loss(torch.where(broken, torch.full_like(losses, bad), losses))
            return loss if loss.isfinite() else 0 * self.layer.weight.sum()

    ids = [i for i in range(40) if which(i)]
    for callback in (InfoBatch(), RandomPruning(0.3)):
        trainer, model = make_trainer(callback, max_epochs=4), Broken()
        trainer.fit(model, make_loader())
        registry = registry_of(trainer)
        trained = registry.selected[ids]  # the random subset may leave them out
        assert trainer.callback_metrics["prune/nonfinite"] == trained.sum()
        if isinstance(callback, InfoBatch):
            assert registry.counts[ids].tolist() == [4] * len(ids)  # never pruned
    assert not registry.losses[[i for i in range(40) if not which(i)]].isinf().any()


def test_all_losses_equal_prune_nothing():
    class Equal(Model):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(torch.ones(len(batch[2])) + 0 * self.layer.weight.sum())

    trainer = make_trainer(InfoBatch())
    trainer.fit(Equal(), make_loader())
    assert registry_of(trainer).counts.tolist() == [4] * 40


def test_empty_batches():
    """A collate function that drops whole batches: they count nothing and record nothing."""

    def collate(samples):
        kept = [s for s in samples if int(s[2]) >= 20]
        x = torch.stack([s[0] for s in kept]) if kept else torch.zeros(0, 8)
        return x, torch.tensor([int(s[1]) for s in kept]).long(), torch.tensor([int(s[2]) for s in kept]).long()

    class Explicit(Model):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(self.losses(batch), indices=batch[2])

    trainer, model = make_trainer(InfoBatch(), max_epochs=3), Explicit()
    trainer.fit(model, make_loader(collate_fn=collate, shuffle=False))
    losses = registry_of(trainer).losses
    assert losses[:20].isnan().all()
    assert losses[20:].isfinite().all()
    assert model.layer.weight.isfinite().all()


@settings(max_examples=60)
@given(st.data())
def test_any_interleaving_of_records_equals_a_dictionary(data):
    """Whole batches, reordered ids, partial ids and unknown ids, in any mixture, against a plain dictionary."""
    n, size = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 7))
    ids = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    batches = PlanBatchSampler(PlanSampler(n, shuffle=True, seed=0), size, False)
    plan = batches.sampler.make_plan(Selection(torch.tensor(ids)), 0)
    running = RunningEpoch(plan, batches, (), torch.device("cpu"))
    expected, value = {}, 0.0
    for batch_idx, drawn in enumerate(list(batches)):
        action = data.draw(st.sampled_from(["record", "skip", "override"]))
        running.begin_step(batch_idx)
        running.batches_done = batch_idx + 1
        step = StepRecord()
        if action == "skip":
            continue
        given_ids = drawn if action == "record" else data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=5))
        step.losses = value + torch.arange(float(len(given_ids)))
        step.given_indices = None if action == "record" else torch.tensor(given_ids, dtype=torch.long)
        value += len(given_ids)
        running.write(step, {})
        known = zip(given_ids, step.losses.tolist(), strict=True)
        expected |= {i: loss for i, loss in known if i in ids}
    record = running.collect()
    assert dict(zip(record.indices.tolist(), record.losses.tolist(), strict=True)) == expected


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_another_dataset_of_the_same_length_is_warned_about(tmp_path):
    def fit(dataset_id, ckpt_path=None):
        checkpoint = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        registry = ScoreRegistry(dataset_id=dataset_id)
        callbacks = [registry, Keep(0.5), *([] if ckpt_path else [checkpoint])]
        trainer = make_trainer(*callbacks, enable_checkpointing=ckpt_path is None)
        trainer.fit(Model(), make_loader(), ckpt_path=ckpt_path)

    fit("v1")
    fit("v1", tmp_path / "epoch=1.ckpt")
    with pytest.warns(
        UserWarning, match=r"belongs to the dataset \['TensorDataset', 'v1'\].*\['TensorDataset', 'v2'\]"
    ):
        fit("v2", tmp_path / "epoch=1.ckpt")


@pytest.mark.parametrize("n", [1000])
def test_state_is_small(n):
    """At most 8 bytes a sample at any moment."""

    class Save(Model):
        def on_train_start(self):
            self.sizes, self.ends = [], []

        def on_train_epoch_end(self):
            self.ends.append(len(self.sizes) - 1)

        def on_train_batch_end(self, *args):
            state = registry_of(self.trainer).state_dict()
            tensors = [state["losses"], state["counts"], *state["columns"].values(), state["ranks"][0]["log"]]
            self.sizes.append(sum(t.numel() * t.element_size() for t in tensors))

    model = Save()
    make_trainer(InfoBatch(), max_epochs=4).fit(model, make_loader(n, batch_size=50))
    assert len(model.ends) == 4  # the first and the last epoch are full
    assert max(model.sizes) <= 8 * n
