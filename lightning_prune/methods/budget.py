"""A method set by what a run may cost: a share of its sample-steps, a number of steps, or hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core import clock
from lightning_prune.core.arrays import count_true
from lightning_prune.core.checks import check_int, check_number, check_ratio
from lightning_prune.core.cost import Goal, Spent, pace_of
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.method import ratio_setting
from lightning_prune.core.moment import Moment
from lightning_prune.core.outlook import Bounds, Outlook
from lightning_prune.core.plan import Selection
from lightning_prune.core.ratio import RatioSetting, UnreachableError
from lightning_prune.core.rng import make_generator
from lightning_prune.core.search import nearest
from lightning_prune.core.shape import EpochShape
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._wrapper import MethodWrapper, ScoreWrapper
from lightning_prune.trainer.callback import PruningCallback

_SHARE = "budget_share"
_BOUNDS = "budget_bounds"
_BEFORE = "budget_before"
_FACTORS = "budget_factors"
_EPOCHS = "budget_epochs"
_SECONDS = "budget_seconds"
_TIME_IS_UP = (
    "Give more `hours`, or fewer `max_epochs`; `Trainer(max_time=...)` ends a run on time whatever it has seen."
)
_EARLY = 0.05
"""By how much a share must be out of reach to be warned of after one epoch: losses change most at the start."""
_MEMORY = 8
"""Epochs from which is learnt what the next ones can leave out, and how long they take."""


@final
class Budget(MethodWrapper):
    """Set a method's ratio, epoch by epoch, so that the whole run costs what it may.

    ``save=0.4`` is the share of the run's sample-steps that is not trained, warm-up and annealing, dropped batches and
    limits counted; the run ends within a point of it. ``steps`` is the number of optimizer steps that ``max_epochs``
    epochs may take, ``hours`` the time, as measured epoch by epoch. Each epoch's share follows from what was really
    spent so far and from what the rest is expected to cost, and the ratio is then searched with which the method
    selects that many samples. So there is no pilot run, and a method that saves less as it learns is asked for more.

    What the method can never reach is refused before the first step, with what it can; what depends on the losses is
    warned of as soon as they are known.

    Args:
        base: A method that has a ratio, or AlignPrune or BatchLossScore around one. Its own ratio is not used.
        save: Share of the sample-steps of the full run to save, in [0, 1).
        hours: Hours that training may take, validation included, > 0. Counted from the first step, over resumes.
        steps: Optimizer steps that the run may take, at least 1. Exactly one of the three is given.
        seed: Seed of the draws. None: the base's.
        warmup_epochs: Epochs at the start that train on everything; at least the base's.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch, with the share asked of the coming epoch as ``prune/budget_share``, and the
            hours spent as ``prune/budget_hours``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If not exactly one of ``save``, ``hours`` and ``steps`` is given, one is out of range, or the base
            has no ratio.
        UnreachableError: Before the first step, if the method cannot save that much in this run; a ValueError.
        MisconfigurationException: Before the first step, if the run has no end, or an end that ``hours`` or ``steps``
            cannot move.

    Note:
        Where the least that a method leaves out is more than is asked (SeTa's window), it starts later: epochs are full
        until what is left asks for it. In the last epoch that is pruned, after which nothing can be made up for, some
        of the samples that it leaves out are added at random instead. Methods that choose every few epochs are
        corrected when they choose.

    Example:
        >>> from lightning_prune import RandomPruning
        >>> Budget(RandomPruning(), save=0.5)
        Budget(base=RandomPruning(prune_ratio=0.3, rescale=False), save=0.5, hours=None, steps=None)
    """

    set_by_ratio = RatioSetting(
        lambda drop: {"save": drop}, bound="What its base can reach is known when it runs: see its warnings."
    )
    needs_arguments = ("it sets the ratio of another method", "base: {class_path: InfoBatch}, save: 0.4")
    not_as_base = (
        "it must see what is really selected, so it goes around all others: write "
        "`Budget(base=AlignPrune(base=InfoBatch()), save=0.4)`."
    )

    def __init__(
        self,
        base: PruningCallback,
        save: float | None = None,
        hours: float | None = None,
        steps: int | None = None,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(base, seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        given = {name: v for name, v in (("save", save), ("hours", hours), ("steps", steps)) if v is not None}
        if len(given) != 1:
            raise ValueError(
                f"Expected exactly one of `save`, `hours` and `steps`, but got {given or 'none'}. Write for example "
                "`Budget(InfoBatch(), save=0.4)`."
            )
        if save is not None:
            check_ratio("save", save)
        if hours is not None:
            check_number("hours", hours, "a number > 0", 0 < hours < float("inf"))
        if steps is not None:
            check_int("steps", steps, low=1)
        self.save = save
        self.hours = hours
        self.steps = steps
        self._target = _innermost(base)
        _check_ratio_of(self._target)
        self.needs_mixin = base.needs_mixin
        self.picks_in_batch = base.picks_in_batch
        self.picks_by_losses = base.picks_by_losses
        self.picks_by_ids = base.picks_by_ids
        self.refreshes_losses = base.refreshes_losses
        if self._is_fixed and hours is not None:
            raise ValueError(
                f"Expected `save` or `steps` for {type(self._target).__name__}, which chooses once, before any time is "
                f"measured, but got hours={hours:g}."
            )
        if self.picks_in_batch and steps is not None:
            raise ValueError(
                f"Expected `save` or `hours` for {type(self._target).__name__}, which makes batches smaller and leaves "
                f"their number as it is, but got steps={steps}."
            )
        self._mark: float | None = None
        self._known: tuple[int, float] | None = None  # an epoch, and the share asked of it: read without a device
        self._warned = False
        for name in vars(Callback):  # what a base does in Lightning's hooks
            if not name.startswith("_") and getattr(type(base), name) is not getattr(PruningCallback, name):
                setattr(self, name, getattr(base, name))

    @property
    def keeps_as(self) -> str:
        """Whose state it keeps: its own, and the base's."""
        return f"Budget({self.base.keeps_as})"

    @property
    def _goal(self) -> Goal:
        if self.save is not None:
            return Goal("save", self.save)
        return Goal("steps", self.steps) if self.steps is not None else Goal("hours", self.hours or 0.0)

    @property
    def _setting(self) -> RatioSetting:
        setting = ratio_setting(type(self._target))
        assert setting is not None  # noqa: S101  (narrowing: checked at construction)
        return setting

    @property
    def _names(self) -> str:
        """The base by its name, as its own ratio is not what is used, and what wraps it."""
        name, method = type(self._target).__name__, self.base
        while isinstance(method, ScoreWrapper):
            name, method = f"{type(method).__name__} of {name}", method.base
        return name

    @property
    def _is_fixed(self) -> bool:
        """Whether the base reads its ratio once."""
        return not self.picks_in_batch and self._setting.read_in == "setup_columns"

    @property
    def _is_searched(self) -> bool:
        """Whether the ratio is searched with which the base selects so many samples."""
        return not self.picks_in_batch and self._setting.read_in == "select"

    @contextmanager
    def _set_to(self, drop: float) -> Iterator[PruningCallback]:
        """Set the method to leave out a share of what it may prune, and leave it as it was."""
        target = self._target
        values = {**self._setting.arguments(drop), "warmup_epochs": self.warmup_epochs, "seed": self.seed}
        before = {name: getattr(target, name) for name in values}
        target.__dict__.update(values)
        try:
            yield self.base
        finally:
            target.__dict__.update(before)

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the plan beside the base's state, and refuse what the method cannot reach."""
        self._known, self._mark, self._warned = None, clock.now(), False
        is_new = _SHARE not in registry.state
        spent = (registry.trained_steps, registry.full_steps, registry.global_step)
        for name, initial in (
            (_SHARE, torch.tensor(0.0)),
            (_BOUNDS, torch.full((_MEMORY, 2), torch.nan)),
            (_BEFORE, torch.tensor(spent)),
            (_FACTORS, torch.ones(3)),
            (_EPOCHS, torch.full((_MEMORY, 2), torch.nan)),
            (_SECONDS, torch.zeros(2)),
        ):
            registry.add_state(name, initial.double())
        self._check_run(registry)
        if is_new and self._is_fixed:
            self._plan(registry, registry.epoch, now=(0.0, self._setting.most))
        with self._set_to(self._drop_of(registry) if self._is_fixed else 0.0) as base:
            base.setup_columns(registry)
        self.weighs_losses = self.base.weighs_losses
        if is_new and not self._is_fixed:
            self._plan(registry, registry.epoch)

    def _check_run(self, registry: SampleTable) -> None:
        """Refuse a run of unknown length, and a goal that it cannot reach whatever the losses are."""
        goal, moment = self._goal, registry.moment(registry.epoch)
        has_end = moment.max_epochs is not None or moment.max_steps is not None
        if not has_end or (goal.name != "save" and (moment.max_epochs is None or moment.max_steps is not None)):
            expected = "`max_epochs`" + (" or `max_steps`" if goal.name == "save" else " and without `max_steps`")
            raise MisconfigurationException(
                f"Expected a run limited by {expected}, of which Budget({goal.name}={goal.value:g}) is a part, but got "
                f"max_epochs={moment.max_epochs} and max_steps={moment.max_steps}."
            )
        if not _shape_of(registry).drops and not self.picks_in_batch and self.save != 0:
            raise UnreachableError(
                "Expected a stream whose dataset drops what is not selected, but got one that trains all its samples, "
                f"some with weight 0: Budget({goal.name}={goal.value:g}) would save no steps. Wrap the dataset: "
                "`lightning_prune.data.PrunedStream(dataset, key=...)`."
            )
        spent = self._spent(registry)
        hard = (0.0, self._setting.most)
        outlook = self._outlook(registry, moment, hard, [hard])
        least, full = goal.cost(spent, outlook.rest(1.0)), goal.cost(spent, outlook.rest(0.0))
        is_late = goal.name != "hours" or spent.seconds >= goal.limit  # what is measured may yet turn out better
        if least is not None and least > goal.limit + goal.tolerance and is_late:
            why = self._setting.bound
            if goal.name == "hours":
                why = f"The run had taken {goal.says(spent.seconds)} when it was interrupted. Give more `hours`."
            raise UnreachableError(
                f"Expected `{goal.name}` that {self._names} can reach in this run, {goal.bound} {goal.says(least)}, "
                f"but got {goal.value:g}. {why}"
            )
        if goal.name == "steps" and full is not None and full <= goal.limit:
            rank_zero_warn(
                f"Budget(steps={goal.value:g}) leaves nothing out: the full run takes {goal.says(full)} steps."
            )

    def _spent(self, registry: SampleTable) -> Spent:
        state = registry.state
        pace = pace_of([(s, t) for s, t in state[_EPOCHS].tolist() if s == s])  # not NaN
        return Spent(registry.trained_steps, registry.full_steps, registry.global_step, float(state[_SECONDS][0]), pace)

    def _outlook(self, registry: SampleTable, moment: Moment, now: Bounds, later: list[Bounds]) -> Outlook:
        of_full, _, of_steps = registry.state[_FACTORS].tolist()
        shape = _shape_of(registry)
        return Outlook(
            moment,
            of_full * shape.full,
            shape.step_size / of_steps,
            self._active,
            now,
            later,
            shortens=not self.picks_in_batch,
        )

    def _active(self, moment: Moment) -> float:
        """Return which share of an epoch may be pruned."""
        return 0.0 if moment.epoch < self.warmup_epochs else self._setting.active(moment, vars(self._target))

    def _is_last(self, moment: Moment) -> bool:
        """Return whether an epoch is the last one that may be pruned and is searched for."""
        if not self._is_searched or moment.max_epochs is None or self._active(moment) == 0:
            return False
        later = (replace(moment, epoch=epoch) for epoch in range(moment.epoch + 1, moment.max_epochs))
        return not any(self._active(one) > 0 for one in later)

    def _plan(self, registry: SampleTable, epoch: int, now: Bounds | None = None) -> None:
        """Note the share to leave out of an epoch."""
        goal, moment, state = self._goal, registry.moment(epoch), registry.state
        spent = self._spent(registry)
        if moment.is_over:
            self._say_if_missed(registry, spent)
            return
        hard = (0.0, self._setting.most)
        is_known = self._is_searched and epoch > registry.epoch and self._active(moment) > 0  # what it can leave out
        later = [(low, high) for low, high in state[_BOUNDS].tolist() if low == low]
        if now is None:
            now = self._bounds(registry, epoch) if self._is_searched and self._active(moment) else hard
        if is_known and now[0] < now[1]:
            later = [*later[1 - _MEMORY :], now]
            state[_BOUNDS].fill_(torch.nan)[: len(later)] = torch.tensor(later, dtype=torch.float64)
        if self._is_last(moment):  # none makes up for it: what the base leaves out too many of is added at random
            now = (0.0, now[1])
        outlook = self._outlook(registry, moment, now, later or [now if is_known else hard])
        share = outlook.share(partial(goal.is_met, spent))
        state[_SHARE].fill_(share)
        least = goal.cost(spent, outlook.rest(1.0)) if share == 1 else None
        slack = self._tolerance(registry) + (_EARLY if goal.name == "save" and len(later) < 2 else 0.0)
        if least is not None and least > goal.limit + slack and not self._warned:
            self._warned = True
            hope = ", and that may yet be enough: losses change as the model learns" if goal.name == "save" else ""
            rank_zero_warn(
                f"Budget({goal.name}={goal.value:g}) cannot be kept as things are: after epoch {epoch - 1}, "
                f"{self._names} can reach {goal.bound} about {goal.says(least)}. The run leaves out as much "
                f"as it can{hope}. {_TIME_IS_UP if goal.name == 'hours' else self._setting.bound}"
            )

    def _say_if_missed(self, registry: SampleTable, spent: Spent) -> None:
        goal = self._goal
        cost = {
            "save": 1 - registry.saved_fraction,
            "steps": float(spent.steps),
            "hours": spent.seconds,
        }[goal.name]
        over, tolerance = cost - goal.limit, self._tolerance(registry)
        if over > tolerance or (goal.name == "save" and -over > tolerance):
            unit = "saved" if goal.name == "save" else goal.name
            told = f"Budget({goal.name}={goal.value:g}) was missed: the run ends with {goal.says(cost)} {unit}."
            rank_zero_warn(told)

    def _tolerance(self, registry: SampleTable) -> float:
        """Return by how much the goal may be missed without a word; a sample an epoch is as near as one can come."""
        return self._goal.tolerance + (1 / registry.num_samples if self.save is not None else 0)

    def _bounds(self, registry: SampleTable, epoch: int) -> Bounds:
        """Return the least and the largest share of an epoch that the base would leave out, given the present state."""
        found = []
        for drop in (0.0, self._setting.most):
            with self._set_to(drop) as base:
                # what is drawn matters little, but must be the same on every rank and after a resume
                selection = base.select(registry, epoch, make_generator(0, epoch, "budget"))
            found.append(self._left_out(registry, len(selection)))
        return min(found), max(found)

    def _left_out(self, registry: SampleTable, selected: int) -> float:
        """Return the share of an epoch's sample-steps that a selection leaves out."""
        shape = _shape_of(registry)
        return float(registry.state[_FACTORS][1]) * (1 - shape.trained(selected) / shape.full)

    def _num_selected(self, registry: SampleTable) -> int:
        """Return how many samples to select so that the share of the coming epoch is left out."""
        shape = _shape_of(registry)
        return shape.selected_for(shape.full * (1 - self._asked(registry)))

    def _drop_of(self, registry: SampleTable) -> float:
        """Return the share of the samples to leave out of the coming epoch."""
        k = self._num_selected(registry)
        return min(1 - k / registry.num_samples, self._setting.most)

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Have the base select as many samples as the plan says, or the nearest number that it can."""
        if not self._is_searched:
            with self._set_to(0.0) as base:
                return base.select(registry, epoch, generator)
        n = registry.num_samples
        if float(registry.state[_SHARE]) == 0:
            return Selection.all(n, registry.losses.device)
        start = generator.get_state()

        def select(drop: float) -> Selection:
            generator.set_state(start)
            with self._set_to(drop) as base:
                return base.select(registry, epoch, generator)

        k = self._num_selected(registry)
        found = nearest(select, k, most=self._setting.most, guess=1 - k / n, tolerance=n // 2000)
        missing = k - len(found) if self._is_last(registry.moment(epoch)) else 0
        return _with_others(found, missing, n, generator) if missing > n // 2000 else found

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Take account of the epoch, hand it on to the base, and plan the next one."""
        self._known = None
        self._take_account(registry)
        if self._is_searched or self._is_fixed:
            with self._set_to(0.0) as base:
                base.on_epoch_recorded(registry, record)
        if not self._is_fixed:
            self._plan(registry, registry.epoch + 1)
        elif registry.moment(registry.epoch + 1).is_over:
            self._say_if_missed(registry, self._spent(registry))
        if not (self._is_searched or self._is_fixed):  # it sets the next epoch
            with self._set_to(self._drop_of(registry)) as base:
                base.on_epoch_recorded(registry, record)

    def _take_account(self, registry: SampleTable) -> None:
        """Learn from the epoch that has ended how far the loader and the steps are as expected."""
        state, shape = registry.state, _shape_of(registry)
        now = (registry.trained_steps, registry.full_steps, registry.global_step)
        trained, full, steps = (a - b for a, b in zip(now, state[_BEFORE].tolist(), strict=True))
        state[_BEFORE].copy_(torch.tensor(now))
        if full > 0:
            of_full, of_saved, of_steps = full / shape.full, float(state[_FACTORS][1]), 1.0
            expected = self._expected(registry)
            if expected > 0.02:
                of_saved = min(max((1 - trained / full) / expected, 0.5), 2.0)
            if steps > 0:
                of_steps = steps / shape.steps(full if self.picks_in_batch else trained)
            state[_FACTORS].copy_(torch.tensor([of_full, of_saved, of_steps]))
        if self.hours is not None:
            seconds = clock.of_first_rank(self._running(registry), registry.losses.device)
            self._mark = clock.now()
            epochs = [row for row in state[_EPOCHS].tolist() if row[0] == row[0]]
            epochs = [*epochs[1 - _MEMORY :], [seconds, trained]]
            state[_EPOCHS].fill_(torch.nan)[: len(epochs)] = torch.tensor(epochs, dtype=torch.float64)
            state[_SECONDS][0] += seconds
            state[_SECONDS][1] = 0.0

    def _expected(self, registry: SampleTable) -> float:
        """Return the share that the epoch would have left out if all went by what was selected, or asked of a batch."""
        shape, share = _shape_of(registry), self._asked(registry)
        if self.picks_in_batch:
            return share
        if self._is_searched or self._is_fixed or self.base is self._target:
            return 1 - shape.trained(count_true(registry.selected)) / shape.full
        return 1 - shape.trained(self._num_selected(registry)) / shape.full  # what wraps it keeps some more

    def _asked(self, registry: SampleTable) -> float:
        """Return the share to ask for, so that the share is left out that is planned."""
        return float(registry.state[_SHARE]) / float(registry.state[_FACTORS][1])

    def _running(self, registry: SampleTable) -> float:
        """Return the seconds of the running epoch so far, those before an interruption included."""
        return float(registry.state[_SECONDS][1]) + clock.now() - (self._mark or clock.now())

    def before_save(self, registry: SampleTable) -> None:
        """Note the time of the running epoch so far."""
        if self.hours is not None and self._mark is not None:
            registry.state[_SECONDS][1] = self._running(registry)
            self._mark = clock.now()
        self.base.before_save(registry)

    def missing_losses(self, step: StepRecord) -> Tensor | None:
        """Return what the base takes for losses."""
        return self.base.missing_losses(step)

    def picks_now(self, registry: SampleTable, epoch: int, batch_idx: int) -> bool:
        """Return whether something is to be left out of this batch."""
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self._asked(registry)
        with self._set_to(self._setting.most) as base:
            return self._known[1] > 0 and base.picks_now(registry, epoch, batch_idx)

    def pick(self, step: StepRecord, generator: torch.Generator) -> Tensor:
        """Have the base pick so many samples that the epoch so far has left out its share, in whole samples."""
        running = step.running
        assert running is not None  # noqa: S101  (narrowing: set by the session)
        assert self._known is not None  # noqa: S101  (narrowing: `picks_now` has read it)
        size = running.batch_length
        excess = min(
            round(self._known[1] * (running.samples_before + size)) - running.num_dropped,
            int(self._setting.most * size),
        )
        if excess <= 0:
            return torch.arange(size, device=step.recorded_losses.device)
        with self._set_to(excess / size) as base:
            return base.pick(step, generator)

    def metrics(self, registry: SampleTable) -> dict[str, float | Tensor]:
        """Log the share asked of the coming epoch, and the hours so far, beside what the base logs."""
        own: dict[str, float | Tensor] = {"budget_share": registry.state[_SHARE].float()}
        if self.hours is not None:
            own["budget_hours"] = (registry.state[_SECONDS][0] / 3600).float()
        return own | super().metrics(registry)


def budgeted(entry: Mapping[str, Any], **goal: float) -> dict[str, Any]:
    """Return what a yaml file says of a method, with a budget around it.

    Args:
        entry: The method's ``class_path`` and ``init_args``.
        goal: ``save``, ``hours`` or ``steps``.

    Example:
        >>> budgeted({"class_path": "InfoBatch"}, save=0.4)["init_args"]
        {'save': 0.4, 'base': {'class_path': 'InfoBatch'}}
    """
    return {"class_path": f"lightning_prune.{Budget.__name__}", "init_args": {**goal, "base": dict(entry)}}


def _with_others(selection: Selection, num: int, num_samples: int, generator: torch.Generator) -> Selection:
    """Return a selection with some of the samples that it leaves out, drawn at random, each with weight 1."""
    others = (~selection.mask(num_samples)).nonzero().squeeze(1)
    drawn = others[torch.randperm(len(others), generator=generator)[:num].to(others.device)]
    weights = selection.weights
    if weights is not None:
        weights = torch.cat([weights, weights.new_ones(len(drawn))])
    return Selection(torch.cat([selection.indices, drawn]), weights)


def _innermost(method: PruningCallback) -> PruningCallback:
    """Return the method that others wrap."""
    while isinstance(method, ScoreWrapper):
        method = method.base
    return method


def _check_ratio_of(method: PruningCallback) -> None:
    """Refuse a method that has no ratio to be set, or one that is a schedule."""
    setting = ratio_setting(type(method))
    names = [] if setting is None else list(setting.arguments(setting.most))
    if not names or not all(hasattr(method, name) for name in names):
        raise ValueError(
            f"Expected a `base` with a ratio, such as InfoBatch, SeTa, RePB or OrderDP, but got {method}"
            + (f", which keeps no attribute {names}." if names else ": none of its arguments is one.")
            + " A method of your own says how a ratio sets it by `set_by_ratio = RatioSetting(...)`."
        )
    if scheduled := [name for name in names if callable(getattr(method, name))]:
        raise ValueError(
            f"Expected a `base` whose `{scheduled[0]}` the budget can set, but got the schedule "
            f"{getattr(method, scheduled[0])!r}. Leave out either the schedule or the budget."
        )


def _shape_of(registry: SampleTable) -> EpochShape:
    if registry.shape is None:
        raise MisconfigurationException(
            "Expected a loader of known length, from which a budget is calculated, but got a stream. Give its number "
            "of samples: `ScoreRegistry(num_samples=...)`."
        )
    return registry.shape
