"""How a ratio sets a method: what its class says of it, inherits, or leaves to be measured."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from lightning_prune.core.method import Method, arguments_of, ratio_setting
from lightning_prune.core.ratio import FIRST_FULL, MEASURED, RatioSetting, known_curve


class Plain(Method):
    pass


class Silent(Method):
    def __init__(self, prune_ratio=0.5, **kwargs):
        super().__init__(**kwargs)


class Said(Silent):
    set_by_ratio = FIRST_FULL


class Same(Said):
    def metrics(self, registry):
        return {}


class Other(Said):
    def __init__(self, sharpness, *layers, seed=3, **rest):
        super().__init__(0.5, seed=seed, **rest)


class Fixed(Said):
    def __init__(self, sharpness=1.0):
        super().__init__(0.5)


class SaidAnew(Fixed):
    set_by_ratio = RatioSetting(lambda drop: {"sharpness": drop})


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (Plain, None),
        (Silent, MEASURED),
        (Said, FIRST_FULL),
        (Same, FIRST_FULL),
        (Other, MEASURED),  # may do anything with a `prune_ratio`
        (Fixed, None),  # takes none
        (SaidAnew, SaidAnew.set_by_ratio),
    ],
)
def test_what_a_class_says_holds_for_the_arguments_that_it_was_said_of(method, setting):
    assert ratio_setting(method) == setting


def test_arguments_are_found_behind_kwargs():
    own = {"seed": None, "warmup_epochs": 0, "scale_lr_schedule": True, "log": True}
    assert arguments_of(Plain) == own
    assert arguments_of(Silent) == {"prune_ratio": 0.5, **own}
    assert arguments_of(Other) == {"sharpness": inspect.Parameter.empty, "prune_ratio": 0.5, **own, "seed": 3}
    assert arguments_of(Fixed) == {"sharpness": 1.0}


@pytest.mark.parametrize(("warmup", "after"), [(0, (1.0, 0.75)), (1, (0.75, 0.75)), (3, (0.25, 0.25)), (9, (0.0, 0.0))])
def test_share_of_the_epochs_that_may_prune(warmup, after):
    given = {"warmup_epochs": warmup}
    assert (RatioSetting().prunable(4, given), FIRST_FULL.prunable(4, given)) == after
    assert known_curve(FIRST_FULL, 4, {"warmup_epochs": warmup})[-1] == (0.99, pytest.approx(0.99 * after[1]))


def test_a_method_without_a_warmup_has_none():
    assert (RatioSetting().prunable(4, {}), FIRST_FULL.prunable(4, {})) == (1.0, 0.75)


def test_pilots_are_added_in_order():
    assert replace(MEASURED, pilots=(0.5,)).measured_at(0.9, 0.25, 0.5).pilots == (0.25, 0.5, 0.9)


@pytest.mark.parametrize(
    ("given", "fixed"),
    [({}, False), ({"prune_ratio": 0.1}, True), ({"keep": 0.1}, True), ({"warmup_epochs": 1}, False)],
)
def test_a_ratio_that_is_given_is_not_set(given, fixed):
    assert RatioSetting(lambda drop: {"keep": 1 - drop}).fixed_by(given) == fixed
