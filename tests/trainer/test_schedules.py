"""Learning-rate schedules end where they would in an unpruned run."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from lightning_prune import WeightedLossMixin
from tests.helpers import VARIABLE, Keep, Model, PlainModel, make_loader, make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]


def one_cycle(optimizer, steps):
    return OneCycleLR(optimizer, max_lr=0.4, total_steps=steps + 1)


def sequential(optimizer, steps):
    first = steps // 4
    parts = [LinearLR(optimizer, 0.1, total_iters=first), CosineAnnealingLR(optimizer, steps - first)]
    return SequentialLR(optimizer, parts, [first])


def lambda_lr(optimizer, steps):
    return LambdaLR(optimizer, lambda step: 1 - step / steps)


def by_step(make, frequency=1):
    def configure(module, optimizer):
        module.steps_estimated = int(module.trainer.estimated_stepping_batches)
        module.scheduler = make(optimizer, module.steps_estimated)
        config = {"scheduler": module.scheduler, "interval": "step", "frequency": frequency}
        return {"optimizer": optimizer, "lr_scheduler": config}

    return configure


@pytest.mark.parametrize("make", [one_cycle, sequential, lambda_lr])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("limit", [1.0, 7], ids=["all", "limit"])
@pytest.mark.parametrize("shares", [VARIABLE, (0.5, 0.3), (1.0, 0.1, 0.8)], ids=str)
def test_step_schedules_end_exactly_at_their_end(make, accumulate, limit, shares):
    model = Model(by_step(make))
    trainer = make_trainer(Keep(*shares), accumulate_grad_batches=accumulate, limit_train_batches=limit)
    trainer.fit(model, make_loader())
    full = min(10, limit if isinstance(limit, int) else 10)
    assert model.steps_estimated == 4 * -(-full // accumulate)
    assert model.scheduler.last_epoch == model.steps_estimated


def test_schedule_keeps_pace_within_the_epoch():
    """After half of a half-length epoch, half of the full epoch's schedule is done."""
    model = Model(by_step(lambda_lr))
    make_trainer(Keep(0.5), max_epochs=2).fit(model, make_loader())
    done = [round((1 - lr / 0.1) * 20) for lr in model.lrs]  # after k of 5 steps of each epoch, before the k-th call
    assert done == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_unscaled_on_request():
    model = Model(by_step(one_cycle))
    make_trainer(Keep(0.5, scale_lr_schedule=False)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 20


def calls_of(scheduler):
    return scheduler.last_epoch


def test_epoch_schedules_are_left_alone():
    model = Model(lambda module, optimizer: ([optimizer], [StepLR(optimizer, 1)]))
    trainer = make_trainer(Keep(*VARIABLE))
    trainer.fit(model, make_loader())
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4


def test_plateau_is_left_alone():
    class Counted(ReduceLROnPlateau):
        seen: list[float] = []

        def step(self, metrics, epoch=None):
            self.seen.append(float(metrics))
            super().step(metrics, epoch)

    def configure(module, optimizer):
        scheduler = Counted(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    Counted.seen = []
    make_trainer(Keep(*VARIABLE)).fit(Model(configure), make_loader(), make_loader(8))
    assert len(Counted.seen) == 4


def test_max_steps_is_left_alone():
    model = Model(by_step(one_cycle))
    make_trainer(Keep(*VARIABLE), max_steps=17, max_epochs=-1).fit(model, make_loader())
    assert model.steps_estimated == 17
    assert model.scheduler.last_epoch == 17


class Manual(Model):
    """Steps its schedule itself, once a batch, and its optimizer ``steps`` times."""

    automatic_optimization, steps = False, 1

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.manual_backward(self.weighted_loss(self.losses(batch)))
            optimizer.step()
        self.step_schedule(self.lr_schedulers())

    def step_schedule(self, scheduler):
        scheduler.step()


class ManualAndRight(Manual):
    def step_schedule(self, scheduler):
        for _ in range(self.pruned_scheduler_calls(scheduler)):
            scheduler.step()


def by_epoch_in_name(module, optimizer):
    """What a module returns that does not care for the interval, as manual optimization does not."""
    module.steps_estimated = int(module.trainer.estimated_stepping_batches)
    module.scheduler = lambda_lr(optimizer, module.steps_estimated)
    return [optimizer], [module.scheduler]


@pytest.mark.parametrize("configure", [by_step(lambda_lr), by_epoch_in_name], ids=["step", "default"])
def test_manual_optimization_that_steps_its_schedule_is_warned_about_and_can_be_right(configure):
    model = Manual(configure)
    with pytest.warns(
        UserWarning, match="`Manual` steps a learning-rate schedule itself.*pruned_scheduler_calls"
    ) as seen:
        make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert sum("schedule itself" in str(w.message) for w in seen) == 1
    assert model.scheduler.last_epoch == 33
    model = ManualAndRight(configure)
    make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 40


def test_manual_optimization_without_a_schedule_or_in_full_epochs_is_left_alone():
    model = Manual(by_step(lambda_lr))
    make_trainer(Keep(1.0)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 40
    make_trainer(Keep(*VARIABLE, scale_lr_schedule=False)).fit(Manual(by_step(lambda_lr)), make_loader())

    class EpochSchedule(Manual):
        def step_schedule(self, scheduler):
            pass

        def on_train_epoch_end(self):
            self.lr_schedulers().step()

    model = EpochSchedule(by_epoch_in_name)
    make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 4


class Told:
    """A scheduler that is told the step, as timm's are."""

    def __init__(self, optimizer, steps):
        self.optimizer, self.steps, self.updates = optimizer, steps, []

    def step_update(self, num_updates):
        self.updates.append(num_updates)
        self.optimizer.param_groups[0]["lr"] = 1 - num_updates / self.steps

    def step(self, epoch):
        self.updates.append(epoch)

    def state_dict(self):
        return {"updates": list(self.updates)}

    def load_state_dict(self, state):
        self.updates = list(state["updates"])


class Telling(Model):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step_update(self.pruned_global_step)


class TellingByHand(Manual):
    steps = 2

    def step_schedule(self, scheduler):
        scheduler.step_update(self.pruned_global_step)


def told(interval, steps=40):
    def configure(module, optimizer):
        module.scheduler = Told(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": module.scheduler, "interval": interval}}

    return configure


@pytest.mark.parametrize(
    ("module", "accumulate", "steps"), [(Telling, 1, 40), (Telling, 3, 16), (TellingByHand, 1, 80)]
)
def test_the_step_of_the_full_run(module, accumulate, steps, tmp_path):
    """It rises with each step, evenly within an epoch, to its end; also in a resumed run."""
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = make_trainer(Keep(*VARIABLE), saver, accumulate_grad_batches=accumulate, enable_checkpointing=True)
    model = module(told("step", steps))
    trainer.fit(model, make_loader())
    updates = model.scheduler.updates
    assert updates[-1] == steps
    assert updates == sorted(set(updates))
    full = {1: 10, 3: 4}[accumulate] * model.steps if module is TellingByHand else {1: 10, 3: 4}[accumulate]
    assert set(range(full, steps + 1, full)) <= set(updates)
    paths = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    for path in paths[:-1:3]:
        resumed = module(told("step", steps))
        make_trainer(Keep(*VARIABLE), accumulate_grad_batches=accumulate).fit(resumed, make_loader(), ckpt_path=path)
        assert resumed.scheduler.updates == updates, path.stem


def test_the_step_of_a_run_that_is_not_scaled():
    for kwargs, method in (({}, []), ({}, [Keep(1.0)]), ({}, [Keep(0.5, scale_lr_schedule=False)])):
        model = Telling(told("step"))
        make_trainer(*method, **kwargs).fit(model, make_loader())
        assert model.scheduler.updates == list(range(1, len(model.lrs) + 1))


def test_a_module_that_tells_its_scheduler_the_steps_of_the_short_run_is_warned_about():
    class Wrong(Model):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step_update(self.global_step)

    model = Wrong(told("step"))
    with pytest.warns(UserWarning, match="`Wrong.lr_scheduler_step` hides.*`self.pruned_global_step` in place of"):
        make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.updates[-1] == 33


def test_schedules_by_the_epoch_of_another_library_are_no_matter():
    class Epochs(Model):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(epoch=self.current_epoch)

    model = Epochs(told("epoch"))
    make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.updates == [0, 1, 2, 3]


@pytest.mark.parametrize("scale", [True, False])
def test_frequency_is_refused(scale):
    trainer = make_trainer(Keep(*VARIABLE, scale_lr_schedule=scale))
    if scale:
        with pytest.raises(Exception, match="Expected `frequency=1`.*got 2.*scale_lr_schedule=False"):
            trainer.fit(Model(by_step(one_cycle, frequency=2)), make_loader())
    else:
        trainer.fit(Model(by_step(one_cycle, frequency=2)), make_loader())


def test_own_scheduler_step_is_warned_about_and_can_be_right():
    class Own(Model):
        def lr_scheduler_step(self, scheduler, metric):
            for _ in range(self.pruned_scheduler_calls(scheduler)):
                scheduler.step()

    model = Own(by_step(one_cycle))
    make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 40

    class Wrong(Model):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step()

    model = Wrong(by_step(one_cycle))
    with pytest.warns(UserWarning, match="`Wrong.lr_scheduler_step` hides the one of `WeightedLossMixin`"):
        make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 33


def test_mixin_behind_a_module_that_steps():
    class Timm(PlainModel):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step()

    class Mixed(WeightedLossMixin, Timm):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(self.losses(batch))

    model = Mixed(by_step(one_cycle))
    make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 40
    assert torch.isfinite(model.layer.weight).all()
