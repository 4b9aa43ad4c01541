"""An interrupted and resumed run is, bit for bit, the uninterrupted one."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import OneCycleLR, SequentialLR, StepLR

from lightning_prune import InfoBatch, OrderDP, RandomPruning, RePB, ScoreRegistry, SeTa
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # resumed runs write to folders of their own

METHODS = {
    "infobatch": lambda: InfoBatch(seed=1),
    "orderdp": lambda: OrderDP(seed=1),
    "repb": lambda: RePB(seed=1, window_batches=2),
    "seta": lambda: SeTa(seed=1, window_scale=0.6),
    "random": lambda: RandomPruning(0.4, rescale=True, seed=1),
    "variable": lambda: Keep(1.0, 0.5, 1.0, 0.75, weight=1.5),
}


def two_schedules(module, optimizer):
    steps = module.trainer.estimated_stepping_batches
    first = StepLR(optimizer, 3, 0.9)
    second = StepLR(optimizer, 5, 0.8)
    scheduler = SequentialLR(optimizer, [first, second], [steps // 2])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def one_cycle(module, optimizer):
    scheduler = OneCycleLR(optimizer, 0.3, total_steps=module.trainer.estimated_stepping_batches + 1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(method, folder, ckpt_path=None, *, dropout=0.0, loader=None, schedule=one_cycle, validate=False, **kwargs):
    """Run 5 epochs, with a checkpoint after each step, at each epoch's end and after each validation."""
    name = "{epoch}-{step}"
    checkpoints = [
        ModelCheckpoint(folder / "step", name, every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder / "end", name, save_on_train_epoch_end=True, save_top_k=-1),
    ]
    if validate:
        checkpoints.append(
            ModelCheckpoint(folder / "val", name, "val_loss", save_on_train_epoch_end=False, save_top_k=-1)
        )
    trainer = make_trainer(METHODS[method](), *checkpoints, enable_checkpointing=True, **{"max_epochs": 5, **kwargs})
    model = Model(schedule, dropout)
    torch.manual_seed(9)
    torch.rand(3 if ckpt_path else 1)  # a resumed process has another random state: ours must be restored
    trainer.fit(model, make_loader(**(loader or {})), make_loader(8) if validate else None, ckpt_path=ckpt_path)
    return trainer, model


def assert_same(whole, resumed):
    (trainer_a, a), (trainer_b, b) = whole, resumed
    assert b.seen, "nothing was trained after the resume"
    assert a.seen[-len(b.seen) :] == b.seen
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key
    for x, y in zip(trainer_a.optimizers, trainer_b.optimizers, strict=True):
        for group_a, group_b in zip(x.state_dict()["state"].values(), y.state_dict()["state"].values(), strict=True):
            assert torch.equal(group_a["momentum_buffer"], group_b["momentum_buffer"])
    assert a.lrs[-len(b.lrs) :] == b.lrs
    first, second = registry_of(trainer_a), registry_of(trainer_b)
    for key, values in first.to_dict().items():
        assert torch.equal(values.nan_to_num(-1), second.to_dict()[key].nan_to_num(-1)), key
    assert torch.equal(first.selection.indices, second.selection.indices)
    assert first.saved_fraction == second.saved_fraction
    metrics = {key: value for key, value in trainer_a.callback_metrics.items() if key.startswith("prune/")}
    assert metrics
    for key, value in metrics.items():
        assert torch.equal(value, trainer_b.callback_metrics[key]), key


VARIANTS = {
    "plain": {},
    "workers": {"loader": {"num_workers": 2}},
    "persistent": {"loader": {"num_workers": 2, "persistent_workers": True}},
    "accumulate": {"accumulate_grad_batches": 2},
    "dropout": {"dropout": 0.4},
    "two_schedules": {"schedule": two_schedules},
    "drop_last": {"loader": {"batch_size": 7, "drop_last": True}},
    "limited": {"limit_train_batches": 6},
}


def checkpoint_choices(folder, accumulate):
    """One checkpoint of an epoch's end, one of its middle, one of its last batch; annealing starts in epoch 4."""
    ends = sorted(folder.glob("end/*.ckpt"), key=step_of)
    steps = sorted(folder.glob("step/*.ckpt"), key=step_of)
    last = [path for path in steps if step_of(path) in {step_of(end) for end in ends}]
    middle = [path for path in steps if path not in last]
    return [ends[0], ends[3], middle[1], middle[len(middle) // 2], last[0], last[2], last[3]]


def step_of(path):
    return int(path.stem.split("step=")[1].split("-")[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_is_uninterrupted(method, variant, tmp_path):
    kwargs = VARIANTS[variant]
    whole = fit(method, tmp_path / "whole", **kwargs)
    for i, path in enumerate(checkpoint_choices(tmp_path / "whole", kwargs.get("accumulate_grad_batches", 1))):
        assert_same(whole, fit(method, tmp_path / f"resumed{i}", path, **kwargs))


@pytest.mark.parametrize("kind", ["end", "middle", "last_batch"])
def test_resumed_runs_can_be_resumed(kind, tmp_path):
    """From the checkpoints that a resumed run writes, in the epoch of the resume and after it."""
    whole = fit("infobatch", tmp_path / "whole", dropout=0.3)
    choices = checkpoint_choices(tmp_path / "whole", 1)
    first = {"end": choices[0], "middle": choices[3], "last_batch": choices[4]}[kind]
    assert_same(whole, fit("infobatch", tmp_path / "again", first, dropout=0.3))
    for i, path in enumerate(sorted(tmp_path.glob("again/step/*.ckpt"), key=step_of)[:-1:3]):
        assert_same(whole, fit("infobatch", tmp_path / f"third{i}", path, dropout=0.3))


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_checkpoints_of_validations(interval, tmp_path):
    whole = fit("infobatch", tmp_path / "whole", validate=True, val_check_interval=interval)
    paths = sorted(tmp_path.glob("whole/val/*.ckpt"), key=step_of)
    assert len(paths) == 5 / interval
    for i, path in enumerate(paths[:-1]):
        resumed = fit("infobatch", tmp_path / f"r{i}", path, validate=True, val_check_interval=interval)
        assert_same(whole, resumed)


def test_extended_run(tmp_path):
    """A finished run of 3 epochs goes on to 5; without annealing that is the run of 5."""
    METHODS["no_annealing"] = lambda: InfoBatch(anneal_ratio=1.0, seed=1)
    whole = fit("no_annealing", tmp_path / "whole", schedule=None)
    fit("no_annealing", tmp_path / "short", schedule=None, max_epochs=3)
    last = max(tmp_path.glob("short/end/*.ckpt"), key=step_of)
    assert_same(whole, fit("no_annealing", tmp_path / "long", last, schedule=None))


def test_max_steps(tmp_path):
    whole = fit("infobatch", tmp_path / "whole", schedule=None, max_epochs=-1, max_steps=37)
    for i, path in enumerate(sorted(tmp_path.glob("whole/step/*.ckpt"), key=step_of)[3:36:7]):
        assert_same(whole, fit("infobatch", tmp_path / f"r{i}", path, schedule=None, max_epochs=-1, max_steps=37))


def last_step(folder):
    return sorted(folder.glob("step/*.ckpt"), key=step_of)[12]


def test_state_loads_with_weights_only(tmp_path):
    fit("infobatch", tmp_path)
    for path in (last_step(tmp_path), *tmp_path.glob("end/*.ckpt")):
        state = torch.load(path, weights_only=True)["callbacks"]["ScoreRegistry"]
        assert state["version"] == 1


def test_another_length_is_refused(tmp_path):
    fit("infobatch", tmp_path / "a", schedule=None)
    with pytest.raises(MisconfigurationException, match="dataset of 40 samples.*but got 44"):
        fit("infobatch", tmp_path / "b", last_step(tmp_path / "a"), schedule=None, loader={"num_samples": 44})


def test_another_batch_size_is_refused_in_mid_epoch_only(tmp_path):
    fit("infobatch", tmp_path / "a", schedule=None)
    with pytest.raises(MisconfigurationException, match="Expected 4 samples per step.*but got 5"):
        fit("infobatch", tmp_path / "b", last_step(tmp_path / "a"), schedule=None, loader={"batch_size": 5})
    end = min(tmp_path.glob("a/end/*.ckpt"), key=step_of)
    fit("infobatch", tmp_path / "c", end, schedule=None, loader={"batch_size": 5})


def test_newer_state_is_refused(tmp_path):
    fit("infobatch", tmp_path / "a", schedule=None)
    path = last_step(tmp_path / "a")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["ScoreRegistry"]["version"] = 99
    torch.save(checkpoint, path)
    with pytest.raises(MisconfigurationException, match="version <= 1, but the checkpoint has 99"):
        fit("infobatch", tmp_path / "b", path, schedule=None)


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
