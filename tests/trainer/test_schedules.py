"""Learning-rate schedules end where they would in an unpruned run."""

from __future__ import annotations

import pytest
import torch
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


def test_manual_optimization_is_left_alone():
    class Manual(Model):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.weighted_loss(self.losses(batch)))
            optimizer.step()
            self.lr_schedulers().step()

    model = Manual(by_step(lambda_lr))
    make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 33


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
    with pytest.warns(UserWarning, match="`Own.lr_scheduler_step` hides the one of `WeightedLossMixin`"):
        make_trainer(Keep(*VARIABLE)).fit(model, make_loader())
    assert model.scheduler.last_epoch == 40


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
