"""An interrupted and resumed run is, bit for bit, the uninterrupted one, in kinds of runs beside the contract's."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import SequentialLR, StepLR

from lightning_prune import ScoreRegistry
from lightning_prune.core.checkpoint import STATE_VERSION
from lightning_prune.testing.method import checkpoint_choices, checkpointing, step_of
from lightning_prune.testing.task import Outcome, assert_resumed, one_cycle
from tests import contract
from tests.helpers import Keep, Model, Remember, make_loader, make_trainer, registry_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),  # of which some write none
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # resumed runs write to folders of their own
    pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once"),
]

NO_ANNEALING = {"anneal_ratio": 1.0}


def two_schedules(module, optimizer):
    steps = module.trainer.estimated_stepping_batches
    first = StepLR(optimizer, 3, 0.9)
    second = StepLR(optimizer, 5, 0.8)
    scheduler = SequentialLR(optimizer, [first, second], [steps // 2])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(
    case,
    folder,
    ckpt_path=None,
    *,
    changes=None,
    dropout=0.0,
    loader=None,
    schedule=one_cycle,
    validate=False,
    write=None,
    **kwargs,
):
    """Run 5 epochs; unless it resumes, with checkpoints of some steps, each epoch's end and each validation."""
    write = ckpt_path is None if write is None else write
    checkpoints = checkpointing(folder) if write else []
    if validate and write:
        checkpoints.append(
            ModelCheckpoint(folder / "val", "{epoch}-{step}", "val_loss", save_on_train_epoch_end=False, save_top_k=-1)
        )
    callbacks = [contract.make(case, **(changes or {})), *checkpoints]
    options = {"logger": Remember(), "enable_checkpointing": bool(checkpoints), "max_epochs": 5, **kwargs}
    trainer = make_trainer(*callbacks, **options)
    model = Model(schedule, dropout)
    torch.manual_seed(9)
    torch.rand(3 if ckpt_path else 1)  # a resumed process has another random state: ours must be restored
    trainer.fit(model, make_loader(**(loader or {})), make_loader(8) if validate else None, ckpt_path=ckpt_path)
    return Outcome.of(trainer, model)


SOME_METHODS = {
    "no_dropout": {},
    "workers_dropout": {"loader": {"num_workers": 2}, "dropout": 0.4},
    "persistent": {"loader": {"num_workers": 2, "persistent_workers": True}},
    "accumulate": {"accumulate_grad_batches": 2},
    "two_schedules": {"schedule": two_schedules},
    "drop_last": {"loader": {"batch_size": 7, "drop_last": True}},
    "limited": {"limit_train_batches": 6},
}
SOME = ["Keep", "InfoBatch", "RePB", *[case for case in contract.CASES if contract.picks(case)][:1]]
"""Epochs of any length; weights and annealing; state of a method's own; picks in batches."""


@pytest.mark.parametrize("case", contract.CASES)
def test_every_method_with_workers(case, tmp_path):
    """From a middle, where workers have been asked for more: kinds of runs have two, and ends and last batches."""
    loader = {"num_workers": 1, "persistent_workers": True}  # of which each start takes longer than an epoch
    whole = fit(case, tmp_path / "whole", loader=loader)
    middle = checkpoint_choices(tmp_path / "whole")[0]
    assert_resumed(whole, fit(case, tmp_path / "resumed", middle, loader=loader))


KINDS = [(variant, case) for variant in SOME_METHODS for case in SOME]
KINDS.remove(("workers_dropout", "Keep"))  # each start of a worker takes longer than an epoch,
KINDS.remove(("workers_dropout", "RePB"))  # and the test above has every method with one


@pytest.mark.parametrize(("variant", "case"), KINDS)
def test_every_kind_of_run(variant, case, tmp_path):
    kwargs = SOME_METHODS[variant]
    whole = fit(case, tmp_path / "whole", **kwargs)
    choices = checkpoint_choices(tmp_path / "whole")  # annealing starts in epoch 4
    for i, path in enumerate(choices[:3] if "num_workers" in kwargs.get("loader", {}) else choices[:5]):
        assert_resumed(whole, fit(case, tmp_path / f"resumed{i}", path, **kwargs))


@pytest.mark.parametrize("kind", ["end", "middle", "last_batch"])
def test_resumed_runs_can_be_resumed(kind, tmp_path):
    """From the checkpoints that a resumed run writes, in the epoch of the resume and after it."""
    whole = fit("InfoBatch", tmp_path / "whole", dropout=0.3)
    choices = checkpoint_choices(tmp_path / "whole")
    first = {"end": choices[3], "middle": choices[0], "last_batch": choices[5]}[kind]
    assert_resumed(whole, fit("InfoBatch", tmp_path / "again", first, dropout=0.3, write=True))
    for i, path in enumerate(sorted(tmp_path.glob("again/step/*.ckpt"), key=step_of)[:-1]):
        assert_resumed(whole, fit("InfoBatch", tmp_path / f"third{i}", path, dropout=0.3))


@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_checkpoints_of_validations(case, interval, tmp_path):
    whole = fit(case, tmp_path / "whole", validate=True, val_check_interval=interval)
    paths = sorted(tmp_path.glob("whole/val/*.ckpt"), key=step_of)
    assert len(paths) == 5 / interval
    for i, path in enumerate(paths[:-1]):
        resumed = fit(case, tmp_path / f"r{i}", path, validate=True, val_check_interval=interval)
        assert_resumed(whole, resumed)


def test_extended_run(tmp_path):
    """A finished run of 3 epochs goes on to 5; without annealing that is the run of 5."""
    whole = fit("InfoBatch", tmp_path / "whole", schedule=None, changes=NO_ANNEALING)
    fit("InfoBatch", tmp_path / "short", schedule=None, changes=NO_ANNEALING, max_epochs=3)
    last = max(tmp_path.glob("short/end/*.ckpt"), key=step_of)
    assert_resumed(whole, fit("InfoBatch", tmp_path / "long", last, schedule=None, changes=NO_ANNEALING))


def test_max_steps(tmp_path):
    whole = fit("InfoBatch", tmp_path / "whole", schedule=None, max_epochs=-1, max_steps=37)
    for i, path in enumerate(sorted(tmp_path.glob("whole/step/*.ckpt"), key=step_of)[1:-1:2]):
        assert_resumed(whole, fit("InfoBatch", tmp_path / f"r{i}", path, schedule=None, max_epochs=-1, max_steps=37))


def last_step(folder):
    return sorted(folder.glob("step/*.ckpt"), key=step_of)[4]


def test_state_loads_with_weights_only(tmp_path):
    fit("InfoBatch", tmp_path)
    for path in (last_step(tmp_path), *tmp_path.glob("end/*.ckpt")):
        state = torch.load(path, weights_only=True)["callbacks"]["ScoreRegistry"]
        assert state["version"] == STATE_VERSION


def test_another_length_is_refused(tmp_path):
    fit("InfoBatch", tmp_path / "a", schedule=None)
    with pytest.raises(MisconfigurationException, match="dataset of 40 samples.*but got 44"):
        fit("InfoBatch", tmp_path / "b", last_step(tmp_path / "a"), schedule=None, loader={"num_samples": 44})


def test_another_batch_size_at_an_epochs_end(tmp_path):
    """In its middle: `test_elastic.py`."""
    fit("InfoBatch", tmp_path / "a", schedule=None)
    end = min(tmp_path.glob("a/end/*.ckpt"), key=step_of)
    fit("InfoBatch", tmp_path / "c", end, schedule=None, loader={"batch_size": 5})


def test_newer_state_is_refused(tmp_path):
    fit("InfoBatch", tmp_path / "a", schedule=None)
    path = last_step(tmp_path / "a")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["ScoreRegistry"]["version"] = 99
    torch.save(checkpoint, path)
    with pytest.raises(
        MisconfigurationException, match=f"version <= {STATE_VERSION}, but the checkpoint has 99.*upgrade"
    ):
        fit("InfoBatch", tmp_path / "b", path, schedule=None)


NEWER = "ignore:.*(callbacks used to create the checkpoint|newer than your current Lightning)"


def resume_old(name):
    path = contract.FIXTURES / f"state-1-{name}.ckpt"
    before = torch.load(path, weights_only=True)["callbacks"]["ScoreRegistry"]
    assert before["version"] == 1 < STATE_VERSION
    trainer, model = make_trainer(contract.make("InfoBatch"), max_epochs=5), Model()
    trainer.fit(model, make_loader(), ckpt_path=path)
    return before, registry_of(trainer), model


@pytest.mark.filterwarnings(NEWER)
def test_older_state_is_loaded():
    """A checkpoint written by the code of version 1, at the end of an epoch."""
    before, registry, model = resume_old("end")
    assert {epoch for epoch, _ in model.seen} == {2, 3, 4}
    trained = torch.zeros(40, dtype=torch.long)
    for epoch in (2, 3, 4):
        trained[model.epoch_ids(epoch)] += 1
    assert torch.equal(registry.counts, before["counts"] + trained)
    low = before["losses"] < before["losses"].double().mean()
    assert len(model.epoch_ids(2)) - (~low).sum() in (low.sum() // 2, (low.sum() + 1) // 2)


@pytest.mark.filterwarnings(NEWER)
def test_older_state_of_an_open_epoch_is_refused():
    """Its plan cannot be checked: losses could be credited to the wrong samples."""
    with pytest.raises(
        MisconfigurationException, match="derive the selection of epoch 1.*checkpoint of an epoch's end"
    ):
        resume_old("middle")


@pytest.mark.parametrize("changes", [{"seed": 2}, {"prune_ratio": 0.4}, {"warmup_epochs": 5}], ids=str)
def test_other_arguments_are_refused_in_mid_epoch_only(changes, tmp_path):
    fit("InfoBatch", tmp_path / "a", schedule=None)
    middle, end, *_ = checkpoint_choices(tmp_path / "a")
    with pytest.raises(
        MisconfigurationException, match="derive the selection of epoch 2.*Resume as the run was started"
    ):
        fit("InfoBatch", tmp_path / "b", middle, changes=changes, schedule=None)
    fit("InfoBatch", tmp_path / "c", end, changes=changes, schedule=None)


def test_fit_again_with_the_same_trainer():
    """`fit` with more epochs goes on with the state; a new Trainer starts anew."""
    callback, model, loader = Keep(1.0, 0.5), Model(), make_loader()
    trainer = make_trainer(callback, max_epochs=2)
    trainer.fit(model, loader)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, loader)
    assert model.epoch_batches(4) == [10, 5, 10, 5]
    assert registry_of(trainer).counts.sum() == 40 + 20 + 40 + 20
    another = make_trainer(callback, max_epochs=1)
    another.fit(Model(), loader)
    assert registry_of(another) is not registry_of(trainer)
    assert registry_of(another).counts.sum() == 40
    assert sum(isinstance(c, ScoreRegistry) for c in trainer.callbacks) == 1
