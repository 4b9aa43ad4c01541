"""Runs that go on in mid-epoch with another number of processes, or another batch size."""

from __future__ import annotations

import random
import time

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import InfoBatch, LabelIssues, Pruner, ScoreRegistry
from lightning_prune.scoring import EL2N, ScoreRecorder
from lightning_prune.testing import processes
from lightning_prune.testing.method import checkpointing, step_of
from lightning_prune.testing.task import ScriptedModel, equal
from tests.helpers import Keep, Model, make_loader, make_trainer
from tests.processes import stage

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Scores are recorded while samples are pruned"),
]
EPOCHS, GLOBAL_BATCH, WORLDS = 5, 8, (1, 2, 4, 1)


class Scripted(ScriptedModel):
    """Tells losses that are the same in every run, and trains on real ones: learns as the other does."""

    def losses(self, batch):
        told = super().losses(batch).detach()
        real = F.cross_entropy(self.layer(batch[0]), batch[1], reduction="none")
        return told + (real - real.detach())


def fit(method, folder=None, ckpt_path=None, *, batch_size=GLOBAL_BATCH, model=None, callbacks=(), **options):
    registry = ScoreRegistry()
    model = model or Scripted(40)
    saves = [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)] if folder is not None else []
    options = {"max_epochs": EPOCHS, "enable_checkpointing": bool(saves), **options}
    trainer = make_trainer(registry, method, *saves, *callbacks, **options)
    trainer.fit(model, make_loader(batch_size=batch_size), ckpt_path=ckpt_path)
    return registry, model


def assert_same_end(whole, resumed):
    """Assert that two runs know the same, and have selected the same in the epochs that both began."""
    (registry, model), (its, other) = whole, resumed
    for key, values in registry.to_dict().items():
        assert equal(values, its.to_dict()[key]), key
    assert registry.saved_fraction == its.saved_fraction
    begun = len(other.selections)
    for one, two in zip(model.selections[len(model.selections) - begun :], other.selections, strict=True):
        assert torch.equal(one[0], two[0])
        assert equal(one[1], two[1])


def trained(model, epoch):
    return [i for e, ids in model.seen if e == epoch for i in ids]


@pytest.mark.parametrize("batch_size", [3, 20])
def test_another_batch_size_in_mid_epoch(batch_size, tmp_path):
    whole = fit(InfoBatch(), tmp_path)
    for path in sorted(tmp_path.glob("*.ckpt"), key=step_of)[1:16:3]:
        epoch, step = torch.load(path, weights_only=True)["epoch"], step_of(path)
        resumed = fit(InfoBatch(), None, path, batch_size=batch_size)
        assert_same_end(whole, resumed)
        before = [i for e, ids in whole[1].seen[:step] if e == epoch for i in ids]
        assert before + trained(resumed[1], epoch) == trained(whole[1], epoch)


def test_scores_and_label_evidence_go_on_too(tmp_path):
    def run(ckpt_path=None, batch_size=GLOBAL_BATCH):
        callbacks = [ScoreRecorder([EL2N(num_epochs=3), "AUM"]), LabelIssues()]
        fit(InfoBatch(), None if ckpt_path else tmp_path, ckpt_path, batch_size=batch_size, callbacks=callbacks)
        recorder, issues = callbacks
        return [tracker.compute() for tracker in recorder.trackers] + list(issues.issues().values())

    whole = run()
    path = sorted(tmp_path.glob("*.ckpt"), key=step_of)[6]
    assert all(map(equal, whole, run(path, 3)))


@pytest.mark.parametrize("kwargs", [{"accumulate_grad_batches": 2}, {"val_check_interval": 0.5}], ids=str)
def test_other_settings_of_the_trainer(kwargs, tmp_path):
    whole = fit(InfoBatch(), tmp_path, **kwargs)
    path = sorted(tmp_path.glob("*.ckpt"), key=step_of)[4]
    assert_same_end(whole, fit(InfoBatch(), None, path, batch_size=5, **kwargs))


def kept():
    """Return a method whose epochs are whole batches on one, two and four processes: none is filled up."""
    return Keep(1.0, 0.6, 0.8, weight=1.5)


def go(rank, world_size, folder, waits):
    """Be one of the processes of a stage; one that ``waits`` does so in the last epoch, to be killed."""
    torch.set_num_threads(1)
    path = processes.newest_checkpoint(folder)
    options = {"devices": world_size, "strategy": "ddp"} if world_size > 1 else {}

    class Slow(Scripted):
        def on_train_batch_start(self, *args):
            if waits and self.current_epoch == EPOCHS - 1:
                time.sleep(processes.PATIENCE)

        def training_step(self, batch, batch_idx):  # before a checkpoint of the step can be written
            with (folder / f"trained-{rank}-of-{world_size}.txt").open("a") as log:
                log.write(" ".join(map(str, [self.global_step + 1, self.current_epoch, *batch[2].tolist()])) + "\n")
            return super().training_step(batch, batch_idx)

    registry, model = fit(kept(), folder, path, batch_size=GLOBAL_BATCH // world_size, model=Slow(40), **options)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"table": registry.to_dict(), "selections": model.selections, "weights": weights}, folder / "end.pt")


@pytest.mark.ddp
def test_one_two_four_and_one_process_killed_at_random_moments(tmp_path):
    """All with 8 samples a step: what is known, selected and learnt is that of one process left alone."""
    processes.skip_without_fork()
    whole, model = fit(kept())
    draw, kills = random.Random(0), []
    for world_size in WORLDS[:-1]:
        stage(go, world_size, tmp_path, 2 + draw.randrange(3), draw.random() * 0.03)
        newest = torch.load(processes.newest_checkpoint(tmp_path), weights_only=True)
        kills.append((newest["global_step"], newest["callbacks"]["ScoreRegistry"]["open"]))
    stage(go, WORLDS[-1], tmp_path)
    assert all(is_open for _, is_open in kills), "not in the middle of an epoch"
    assert sorted(set(kills)) == kills
    end = torch.load(tmp_path / "end.pt", weights_only=False)
    for key, values in whole.to_dict().items():
        assert equal(values, end["table"][key]), key
    for one, two in zip(model.selections[-len(end["selections"]) :], end["selections"], strict=True):
        assert torch.equal(one[0], two[0])
        assert equal(one[1], two[1])
    for key, values in model.state_dict().items():  # gradients of halves and quarters are added up in another order
        torch.testing.assert_close(values, end["weights"][key], rtol=1e-4, atol=1e-6)
    assert visited(tmp_path, kills) == visited_alone(model)


def visited_alone(model):
    return {epoch: sorted(trained(model, epoch)) for epoch in range(EPOCHS)}


def visited(folder, kills):
    """Return what each epoch has trained, sorted, without what came after a checkpoint and was lost with the kill."""
    bounds = [0, *(step for step, *_ in kills), 1 << 30]
    steps = {}
    for world_size, begin, end in zip(WORLDS, bounds, bounds[1:], strict=False):
        for rank in range(world_size):
            for line in (folder / f"trained-{rank}-of-{world_size}.txt").read_text().splitlines():
                step, epoch, *ids = map(int, line.split())
                if begin < step <= end:  # of a step that was trained twice, the second time
                    steps[step, rank, world_size] = (epoch, ids)
    return {epoch: sorted(i for e, ids in steps.values() if e == epoch for i in ids) for epoch in range(EPOCHS)}


def test_a_loop_goes_on_with_another_batch_size():
    def run(batch_size, state=None, until=None):
        pruner, seen = Pruner(InfoBatch(), max_epochs=4), []
        loader = pruner.attach(make_loader(batch_size=batch_size))
        if state is not None:
            pruner.load_state_dict(state)
        for epoch in pruner.epochs():
            for batch in loader:
                seen += [(epoch, i) for i in batch[2].tolist()]
                pruner.weighted_loss(batch[2] % 7 + 0.1 * epoch)
                if len(seen) == until:
                    return pruner.state_dict(), seen
        return pruner, seen

    whole, seen = run(4)
    state, first = run(4, until=12)  # of 40
    resumed, rest = run(7, state)
    assert first + rest == seen
    for key, values in whole.registry.to_dict().items():
        assert equal(values, resumed.registry.to_dict()[key]), key
    assert whole.saved_fraction == resumed.saved_fraction


def test_several_loaders_go_on_as_they_were(tmp_path):
    def run(batch_size, ckpt_path=None):
        registry = ScoreRegistry(loader="a")
        saves = [] if ckpt_path else checkpointing(tmp_path)
        trainer = make_trainer(registry, Keep(0.5), *saves, enable_checkpointing=bool(saves))

        class Two(Model):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch["a"], batch_idx)

        trainer.fit(Two(), {"a": make_loader(batch_size=batch_size), "b": make_loader(8)}, ckpt_path=ckpt_path)

    run(4)
    path = sorted(tmp_path.glob("step/*.ckpt"), key=step_of)[1]
    with pytest.raises(MisconfigurationException, match=r"4 samples per step.*got 1 with 5: there are several train"):
        run(5, path)
