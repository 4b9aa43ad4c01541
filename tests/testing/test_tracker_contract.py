"""The contract of trackers lets a sound one pass, and catches each way of breaking it."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.scoring import SmallLoss, Tracker
from lightning_prune.testing import TrackerContract
from lightning_prune.testing.task import LIGHTNING_S_ADVICE

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_S_ADVICE]


class WorstLoss(Tracker):
    """Sound: the largest loss ever seen."""

    needs = ("losses",)

    def __init__(self, num_samples=None):
        super().__init__(num_samples)

    def measure(self, batch):
        return batch.losses

    def fold(self, old, values):
        return {"value": torch.fmax(old["value"], values)}


class TestWorstLoss(TrackerContract):
    tracker = WorstLoss


class EveryVisit(WorstLoss):
    """Adds up all visits of an epoch."""

    def record(self, batch):
        super().record(batch)
        self._seen = None

    def fold(self, old, values):
        return {"value": old["value"].nan_to_num() + values}


class LastOfCopies(WorstLoss):
    def record(self, batch):
        batch.first = len(batch.indices) - 1 - batch.first.flip(0)
        super().record(batch)

    def fold(self, old, values):
        return {"value": values}


class StateInTheTracker(WorstLoss):
    """Adds up what it keeps in an attribute."""

    total = 0.0

    def measure(self, batch):
        self.total = self.total + 0.1
        return batch.losses + self.total

    def reset(self):
        super().reset()
        self.total = 0.0


class ByBatch(WorstLoss):
    def measure(self, batch):
        return batch.losses - batch.losses.mean()


class ByPosition(WorstLoss):
    def measure(self, batch):
        return batch.losses + batch.indices


class Invents(WorstLoss):
    def initial(self, num_samples, values):
        return {"value": torch.zeros(num_samples)}


class TakesNan(WorstLoss):
    def measure(self, batch):
        return batch.losses.nan_to_num(5.0)


class ChangesInputs(WorstLoss):
    def measure(self, batch):
        return batch.losses.mul_(2)


class HandsOutItsState(WorstLoss):
    def score(self):
        return self.state["value"]


class ReadsAValue(WorstLoss):
    def measure(self, batch):
        return batch.losses * (2 if batch.losses.sum() > 3 else 1)


class MovesToTheHost(WorstLoss):
    def measure(self, batch):
        return batch.losses.cpu()


class MovesByName(WorstLoss):
    def measure(self, batch):
        return batch.losses.to("cpu")


class MaskedIndex(WorstLoss):
    def measure(self, batch):
        losses = batch.losses.clone()
        losses[losses > 0.5] = losses[losses > 0.5] + 1
        return losses


class Draws(WorstLoss):
    def measure(self, batch):
        return batch.losses + 0 * torch.rand(())


class Double(WorstLoss):
    def compute(self):
        return super().compute().double()


class Nameless(WorstLoss):
    def __repr__(self):
        return object.__repr__(self)


class KeepsAfterReset(WorstLoss):
    def reset(self):
        kept = getattr(self, "state", {})
        super().reset()
        self.state = kept


BROKEN = [
    (Double, "scores_are_float32_by_sample"),
    (Double, "low_precision_inputs_are_scored_in_float32"),
    (ByBatch, "batch_size_and_order_do_not_matter"),
    (ByPosition, "permuting_ids_permutes_scores"),
    (EveryVisit, "a_sample_counts_once_per_epoch"),
    (LastOfCopies, "the_first_of_two_copies_in_a_batch_counts"),
    (Invents, "missing_samples_are_not_invented"),
    (TakesNan, "nan_visits_are_no_visits"),
    (StateInTheTracker, "state_round_trip_in_the_middle_of_an_epoch"),
    (KeepsAfterReset, "copies_and_reset"),
    (Nameless, "repr"),
    (ChangesInputs, "inputs_are_not_changed"),
    (HandsOutItsState, "inputs_are_not_changed"),
    (ReadsAValue, "updates_never_wait_for_the_device"),
    (MovesToTheHost, "updates_never_wait_for_the_device"),
    (MovesByName, "updates_never_wait_for_the_device"),
    (MaskedIndex, "updates_never_wait_for_the_device"),
    (Draws, "global_random_numbers_are_left_alone"),
    (StateInTheTracker, "recorded_in_a_training"),
    (ByBatch, "two_processes"),
]


def contract_of(tracker):
    return type("Broken", (TrackerContract,), {"tracker": staticmethod(tracker)})()


@pytest.mark.parametrize(("tracker", "name"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_tracker_is_caught(tracker, name, tmp_path):
    arguments = {"batch_size_and_order_do_not_matter": [16], "recorded_in_a_training": [tmp_path]}
    arguments["two_processes"] = [tmp_path]
    with pytest.raises(AssertionError):
        getattr(contract_of(tracker), f"test_{name}")(*arguments.get(name, ()))


def test_a_tracker_that_names_no_inputs_is_caught():
    class NeedsNothing(SmallLoss):
        needs = ()

        def measure(self, batch):
            return torch.ones(len(batch.indices))

        def compute(self):
            return torch.zeros(self.num_samples)

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        contract_of(NeedsNothing).test_nothing_recorded_is_no_score()
