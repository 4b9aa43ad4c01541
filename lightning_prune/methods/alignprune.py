"""AlignPrune (CVPR 2026): rank samples by how well their losses follow those of a reference, to prune label noise."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core.arrays import is_finite, lowest, to_device
from lightning_prune.core.checks import check_choice, check_int
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.stats import count_nonfinite, finite_mean, surely_finite
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._running_pearson import NUM_SUMS, make_sums, only_observed, slide
from lightning_prune.methods._wrapper import ScoreWrapper
from lightning_prune.trainer.callback import PruningCallback
from lightning_prune.trainer.registry import ScoreRegistry

_LOSSES = "align_losses"
_SUMS = "align_sums"
_SCORE = "align_score"
_REFERENCE = "align_reference"
_PSEUDO_CLEAN = 0.1
"""Share of the samples that is taken for clean, of a score file."""
_METRIC = "align_metric"
_EPOCHS = "align_epochs"

_CHUNK = 8192
"""Samples at a time on the CPU: a float32 window of 25 epochs of them and its copies fit a core's cache."""


def alignment_score(
    trajectories: Tensor,
    reference: Tensor,
    *,
    correlation: Literal["pearson", "spearman", "cosine", "dtw"] = "pearson",
    mask: Tensor | None = None,
    min_observed: int = 2,
) -> Tensor:
    """Return how well each sample's losses follow the reference's, over the epochs in which it was observed.

    Args:
        trajectories: Losses ``(n, N)`` of n samples over N epochs, oldest first; a value that is not finite counts as
            not observed.
        reference: Losses ``(N,)`` of the reference over the same epochs; likewise.
        correlation: ``"pearson"``: in [-1, 1], unchanged by scaling and shifting a trajectory. ``"spearman"``: of the
            ranks, ties averaged. ``"cosine"``: not centred, near 1 for most losses. ``"dtw"``: minus the dynamic time
            warping distance (absolute differences) of the standardised series; at most 0, and much slower.
        mask: True ``(n, N)`` where observed. None: everywhere.
        min_observed: Observations that a score needs, >= 2.

    Returns:
        Scores ``(n,)``, float32; NaN where fewer than ``min_observed`` are observed, 0 where the trajectory or the
        reference is constant over them (for ``"dtw"`` a constant series is standardised to zeros, for ``"cosine"``
        only a series of zeros counts as constant).

    Raises:
        TypeError: If an input has the wrong type.
        ValueError: If a shape or an argument is out of range.

    Example:
        >>> following, opposed = [2.0, 1.0, 0.5], [0.1, 0.2, 0.9]
        >>> alignment_score(torch.tensor([following, opposed]), torch.tensor([4.0, 2.0, 1.0])).round(decimals=2)
        tensor([ 1.0000, -0.8300])
    """
    for name, value in (("trajectories", trajectories), ("reference", reference)):
        if not value.is_floating_point():
            raise TypeError(f"Expected `{name}` to be a floating-point tensor, but got {value.dtype}.")
    if trajectories.dim() != 2 or reference.shape != trajectories.shape[1:]:
        raise ValueError(
            f"Expected `trajectories` (n, N) and `reference` (N,), but got {tuple(trajectories.shape)} and "
            f"{tuple(reference.shape)}."
        )
    check_choice("correlation", correlation, tuple(_CORRELATIONS))
    check_int("min_observed", min_observed, low=2)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"Expected `mask` to be a bool tensor, but got {mask.dtype}.")
        if mask.shape != trajectories.shape:
            raise ValueError(
                f"Expected `mask` to have the shape of `trajectories`, {tuple(trajectories.shape)}, but got "
                f"{tuple(mask.shape)}."
            )
        trajectories = trajectories.masked_fill(~mask, torch.nan)
    return _alignment(trajectories.T, reference, correlation, min_observed)


def _alignment(ring: Tensor, reference: Tensor, correlation: str, min_observed: int) -> Tensor:
    """Return the scores ``(n,)`` of trajectories stored epoch by epoch ``(N, n)``, in any order of the epochs."""
    known = reference.isfinite()
    if not bool(known.all()):
        ring, reference = ring[known], reference[known]
    n = ring.shape[1]
    scores = torch.full((n,), torch.nan, dtype=torch.float32, device=ring.device)
    if len(reference) < min_observed:
        return scores
    dtype = torch.promote_types(ring.dtype, torch.float32)
    y = reference.to(ring.device, torch.float64)
    score = _CORRELATIONS[correlation]
    size = _CHUNK if ring.device.type == "cpu" else 64 * _CHUNK
    ones = torch.ones(len(y), dtype=dtype, device=ring.device)
    for start in range(0, n, size):
        x = ring[:, start : start + size].to(dtype)
        part = scores[start : start + size]
        sums = ones @ x
        if bool(sums.sum().isfinite()):
            part.copy_(score(x, y, None, sums))
        else:
            seen = (x - x).eq_(0)  # NaN - NaN and inf - inf are NaN, and NaN equals nothing
            x = x.nan_to_num(0, 0, 0)
            part.copy_(score(x, y, seen, ones @ x))
            part[ones @ seen < min_observed] = torch.nan
    return scores


def _pearson(x: Tensor, y: Tensor, seen: Tensor | None, sums: Tensor) -> Tensor:
    """Correlate ``x`` ``(N, c)``, of column sums ``sums``, with ``y`` ``(N,)``, float64.

    ``seen`` ``(N, c)`` is 1 where observed, else 0, as ``x`` is there, which is then overwritten; None: everywhere.
    """
    rounding = (len(y) * torch.finfo(x.dtype).eps) ** 2  # share of the mean square that a constant may vary by
    mean_y = y.mean()
    y = (y - mean_y).to(x.dtype)
    ones = torch.ones_like(y)
    if seen is None:
        mean = sums.div_(len(y))
        x = x - mean
        var_y = y @ y
    else:
        count = (ones @ seen).clamp_(min=1)
        mean = sums.div_(count)
        x = x.sub_(mean).mul_(seen)
        total, square = torch.stack([y, y * y]) @ seen
        var_y = square.sub_(total.square_().div_(count))
    var_y.sub_(len(y) * rounding * mean_y.square()).clamp_(min=0)
    along = y @ x
    var_x = (ones @ x.square_()).addcmul_(mean, mean, value=-len(y) * rounding)
    return along.div_(var_x.mul_(var_y).sqrt_()).nan_to_num_(0, 0, 0).clamp_(-1, 1)


def _spearman(x: Tensor, y: Tensor, seen: Tensor | None, sums: Tensor) -> Tensor:
    seen = torch.ones_like(x) if seen is None else seen
    ranks_x, ranks_y = _ranks(x, seen), _ranks(y.to(x.dtype)[:, None].expand_as(x), seen)
    count = seen.sum(0).clamp(min=1)
    ranks_x = (ranks_x - ranks_x.sum(0) / count) * seen
    ranks_y = (ranks_y - ranks_y.sum(0) / count) * seen
    scale = (ranks_x.square().sum(0) * ranks_y.square().sum(0)).sqrt()
    return ((ranks_x * ranks_y).sum(0) / scale).nan_to_num_(0, 0, 0).clamp_(-1, 1)


def _ranks(values: Tensor, seen: Tensor) -> Tensor:
    """Return the ranks ``(N, c)`` within each column among those seen, from 1, ties averaged; 0 where not seen."""
    ranks = torch.empty_like(seen)
    for i, row in enumerate(values):
        smaller = ((values < row) * seen).sum(0)
        equal = ((values == row) * seen).sum(0)
        ranks[i] = (smaller + (equal + 1) / 2) * seen[i]
    return ranks


def _cosine(x: Tensor, y: Tensor, seen: Tensor | None, sums: Tensor) -> Tensor:
    y = y.to(x.dtype)
    along = y @ x
    square_y = y @ y if seen is None else (y * y) @ seen
    scale = (torch.ones_like(y) @ x.square()).mul_(square_y).sqrt_()
    return along.div_(scale).nan_to_num_(0, 0, 0).clamp_(-1, 1)


def _dtw(x: Tensor, y: Tensor, seen: Tensor | None, sums: Tensor) -> Tensor:
    seen = torch.ones_like(x) if seen is None else seen
    x, y = _standardised(x, seen), _standardised(y.to(x.dtype)[:, None] * seen, seen)
    missing = seen == 0
    infinite = torch.full_like(x[0], torch.inf)
    # cost[j]: of the best path up to the current epoch of x and the j-th of y, from 1; an epoch not seen repeats the
    # entry before it, as if it were not there
    cost = [torch.zeros_like(x[0])]
    for absent in missing:
        cost.append(torch.where(absent, cost[-1], infinite))
    for i in range(len(x)):
        row = [torch.where(missing[i], cost[0], infinite)]
        for j in range(len(y)):
            step = (x[i] - y[j]).abs() + torch.minimum(torch.minimum(cost[j], cost[j + 1]), row[j])
            row.append(torch.where(missing[i], cost[j + 1], torch.where(missing[j], row[j], step)))
        cost = row
    return -cost[-1]


def _standardised(x: Tensor, seen: Tensor) -> Tensor:
    count = seen.sum(0).clamp(min=1)
    x = (x - x.sum(0) / count) * seen
    return x / (x.square().sum(0) / count).sqrt().clamp(min=torch.finfo(x.dtype).tiny)


_CORRELATIONS: dict[str, Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "cosine": _cosine,
    "dtw": _dtw,
}


@final
class AlignPrune(ScoreWrapper):
    """Have ``base`` prune samples whose losses do not follow a reference's: under label noise, the mislabelled ones.

    A sample's score is the correlation of its losses over the last ``window`` epochs with the reference's. The base
    then does with low scores what it does with low losses. Until ``window`` epochs are recorded it ranks by its own
    scores. A sample that was observed in too few of them is undecided: it is kept with weight 1, so that it is
    observed again.

    Args:
        base: A method that ranks by scores: InfoBatch, SeTa, RePB, OrderDP or your own.
        reference: ``"self"``: the mean of the lower half of each epoch's training losses; needs no clean data.
            Or the name of a metric that the validation loop logs, such as ``"val_loss"``. Or a list of training
            indices known to be clean, of which the mean recorded loss is taken. Or ``"loader"``: the mean loss over
            ``reference_dataloader()`` of the module or the datamodule, in eval mode after each epoch. Or a
            pseudo-clean set: what a `StaticPruning` keeps, or the path of a score file (``.npz``), of which the tenth
            that its rule keeps first is taken; the paper uses SmallLoss and Moderate (table 5). Scores that keep the
            hardest first, such as AUM or EL2N, would keep wrong labels.
        window: Epochs that are correlated, >= 2. The paper uses 25, and 5 for runs of 10 epochs.
        correlation: ``"pearson"``, ``"spearman"``, ``"cosine"`` or ``"dtw"``; see `alignment_score`.
        missing: Of an epoch that did not train a sample: ``"mask"``: leave it out. ``"hold"``: repeat the last loss.
        min_observed: Observations that a score needs, in [2, ``window``]. None: ``max(4, window // 5)``, at most
            ``window``.
        rescale: Keep the base's weights. They make up for what is pruned, so the mislabelled samples that survive
            count the more. False: once ranked by alignment, what is kept has weight 1; better under label noise.
        seed: Seed of the draws. None: the base's.
        warmup_epochs: Epochs at the start that train on everything; at least the base's.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch, with ``prune/align_reference`` and, once in force, the share of undecided
            samples, ``prune/align_undecided``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the base does not rank by scores, or an argument is out of range.
        MisconfigurationException: Before the first step, if there is no such loader or no validation loop; after the
            first validation, if it did not log the metric.

    Note:
        Memory: ``4 * window + 4`` bytes a sample, and 56 for ``"pearson"``, which goes by running sums: losses that
        vary by less than a millionth of what they were in the last windows count as constant, and score 0. ``rescale``
        changes no expectation: with the base's weights, the gradient stays unbiased for the noisy data. SeTa slides
        from low to high scores, as its own code does with losses: here from the least to the best aligned samples.
        The paper does not say in which order; in either, both ends are left out as often, and wrong labels stay.

    References:
        "AlignPrune", CVPR 2026. Missing observations and the instant of the reference's loss are not specified there.

    Example:
        >>> from lightning_prune import InfoBatch
        >>> AlignPrune(base=InfoBatch(), window=10, rescale=False).min_observed
        4
    """

    def __init__(
        self,
        base: PruningCallback,
        reference: str | list[int] | PruningCallback = "self",
        window: int = 25,
        correlation: Literal["pearson", "spearman", "cosine", "dtw"] = "pearson",
        missing: Literal["mask", "hold"] = "mask",
        min_observed: int | None = None,
        rescale: bool = True,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(base, seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        _check_reference(reference)
        check_int("window", window, low=2)
        check_choice("correlation", correlation, tuple(_CORRELATIONS))
        check_choice("missing", missing, ("mask", "hold"))
        if min_observed is None:
            min_observed = min(window, max(4, window // 5))
        check_int("min_observed", min_observed, low=2, high=window)
        self.reference = reference
        self.window = window
        self.correlation = correlation
        self.missing = missing
        self.min_observed = min_observed
        self.rescale = rescale
        self._loader: Any = None
        self._clean: Tensor | None = None  # ids of the reference, if it is a part of the training data

    @property
    def _metric(self) -> str | None:
        """Name of the logged metric that is the reference, or None."""
        named = isinstance(self.reference, str) and not _is_score_file(self.reference)
        return self.reference if named and self.reference not in ("self", "loader") else None  # type: ignore[return-value]

    def trainer_only(self) -> str | None:
        """Return why the reference, or the base, needs a Trainer."""
        if self.reference != "loader" and self._metric is None:
            return self.base.trainer_only()
        source = "`reference_dataloader()`" if self.reference == "loader" else f"the logged metric {self.reference!r}"
        return f'its reference is {source}; use `reference="self"` or a list of clean training indices'

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the reference loader, or refuse a reference that cannot come to be."""
        if not ScoreRegistry.of(trainer).takes_part:
            return
        if self._metric is not None and not trainer.enable_validation:
            raise MisconfigurationException(
                f"Expected a validation loop that logs {self._metric!r}, the reference of AlignPrune, but there is "
                "none. Give `fit` a validation DataLoader and the module a `validation_step`, or use "
                '`reference="self"`.'
            )
        if self.reference == "loader":
            owners = (pl_module, trainer.datamodule)  # type: ignore[attr-defined]  # set by a connector
            hooks = [getattr(owner, "reference_dataloader", None) for owner in owners]
            hook = next((hook for hook in hooks if callable(hook)), None)
            if hook is None:
                raise MisconfigurationException(
                    "Expected the module or the datamodule to have a method `reference_dataloader()`, as AlignPrune "
                    'was given `reference="loader"`, but neither has.'
                )
            self._loader = hook()

    def setup_columns(self, registry: SampleTable) -> None:
        """Declare the ring of losses, the reference's and the scores."""
        n, last = registry.num_samples, registry.max_epochs
        self._clean = _clean_ids(self.reference, n)
        if last is not None and last < 2 * self.window:
            rank_zero_warn(
                f"AlignPrune(window={self.window}) ranks by alignment only once {self.window} epochs are recorded: in "
                f"{max(0, last - self.window)} of this run's {last} epochs. Use a shorter window (of at least 4), or "
                "train longer."
            )
        registry.add_column(_LOSSES, fill=torch.nan, slots=self.window)
        if self.correlation == "pearson":
            registry.add_column(_SUMS, dtype=torch.float64, slots=NUM_SUMS)
        registry.add_column(_SCORE, fill=torch.nan)
        registry.add_state(_REFERENCE, torch.full((self.window,), torch.nan, dtype=torch.float64))
        registry.add_state(_METRIC, torch.tensor(torch.nan, dtype=torch.float64))
        registry.add_state(_EPOCHS, torch.tensor(0))
        super().setup_columns(registry)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the reference metric, averaged over ranks."""
        if self._metric is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        registry = ScoreRegistry.of(trainer)
        if not registry.takes_part:
            return
        value = trainer.callback_metrics.get(self._metric)
        if value is None:
            logged = sorted(name for name in trainer.callback_metrics if not name.startswith("prune/"))
            raise MisconfigurationException(
                f"Expected the validation loop to log {self._metric!r}, the reference of AlignPrune, but it logged "
                f"{logged}. Name one of these, or use `reference='self'`."
            )
        mean = trainer.strategy.reduce(value.detach().clone().double(), reduce_op="mean")
        registry.state[_METRIC].copy_(mean)

    def _in_force(self, registry: SampleTable) -> bool:
        return int(registry.state[_EPOCHS]) >= self.window

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Let the base select by alignment, and add the undecided."""
        if not self._in_force(registry):
            return self.base.select(registry, epoch, generator)
        scores = registry.settle(registry.column(_SCORE))
        selection = self.base.select(registry.replace_scores(scores), epoch, generator)
        if surely_finite(scores):
            return selection if self.rescale else replace(selection, weights=None)
        kept = to_device(selection.mask(len(scores)), scores.device)
        everyone = Selection.from_mask(kept | scores.isnan())
        if selection.weights is None or not self.rescale:
            return everyone
        weights = torch.ones_like(scores).scatter_(
            0, selection.indices.to(scores.device), selection.weights.to(scores.device)
        )
        return replace(everyone, weights=weights.index_select(0, everyone.indices))

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Record the epoch's losses and the reference's; score, once there is a window of them."""
        ring, references = registry.column(_LOSSES), registry.state[_REFERENCE]
        slot = registry.epoch % self.window
        losses, observed = self._recorded_losses(registry, record)
        left = references[slot].clone()
        references[slot] = self._reference_loss(registry, record)
        registry.state[_EPOCHS] += 1
        scores = registry.column(_SCORE) if self._in_force(registry) else None
        if self.correlation != "pearson":
            ring[slot] = only_observed(losses, observed)
        else:
            sums = registry.column(_SUMS)
            slide(sums, ring[slot], losses, observed, left, references, slot, self.min_observed, out=scores)
            turns, n = 8 * self.window, registry.num_samples
            turn = registry.epoch % turns
            part = slice(n * turn // turns, n * (turn + 1) // turns)
            sums[:, part] = make_sums(ring[:, part], references)  # in turn: no rounding stays longer than eight windows
        if scores is None:
            self.base.on_epoch_recorded(registry, record)
            return
        if bool((references == references[0]).all()):
            rank_zero_warn(
                f"The reference losses of AlignPrune have not changed for {self.window} epochs, so nothing can follow "
                "them: all samples score 0, and what is left out is arbitrary. Use another `reference`, or a longer "
                "`window`."
            )
        if self.correlation != "pearson":
            if self.correlation == "dtw":  # the only one that asks for the order of the epochs
                ring, references = ring.roll(-1 - slot, 0), references.roll(-1 - slot)
            scores.copy_(_alignment(ring, references, self.correlation, self.min_observed))
        self.base.on_epoch_recorded(registry.replace_scores(scores), record)

    def _recorded_losses(self, registry: SampleTable, record: EpochRecord) -> tuple[Tensor, Tensor | None]:
        """Return the losses ``(n,)`` of the epoch that ends, and which of them count; None: all that are finite."""
        if self.missing == "hold":
            return registry.losses, None
        if record.recorded is None:  # all that were selected
            return registry.losses, registry.selected
        return torch.full_like(registry.losses, torch.nan).scatter_(0, record.indices, record.losses), None

    def _reference_loss(self, registry: SampleTable, record: EpochRecord) -> Tensor:
        """Return the reference's loss in the epoch that ends, a 0-d float64 tensor; NaN: unknown."""
        if self._metric is not None:
            metric = registry.state[_METRIC].clone()
            registry.state[_METRIC].fill_(torch.nan)
            return metric
        if self._loader is not None:
            return registry.mean_loss(self._loader)
        if self._clean is not None:
            return finite_mean(registry.losses[self._clean.to(registry.losses.device)])
        losses = record.losses
        if record.num_nonfinite:
            losses = losses[is_finite(losses)]
        if len(losses) == 0:
            return losses.new_full((), torch.nan, dtype=torch.float64)
        return finite_mean(lowest(losses, max(1, len(losses) // 2)))

    def metrics(self, registry: SampleTable) -> dict[str, float | Tensor]:
        """Log the reference's loss and the share of undecided samples, beside what the base logs."""
        reference = registry.state[_REFERENCE][registry.epoch % self.window]
        own: dict[str, float | Tensor] = {"align_reference": reference.float()}
        if self._in_force(registry):
            own["align_undecided"] = count_nonfinite(registry.settle(registry.column(_SCORE))) / registry.num_samples
        return own | super().metrics(registry)


def _is_score_file(reference: object) -> bool:
    return isinstance(reference, str) and reference.endswith(".npz")


def _check_reference(reference: object) -> None:
    """Raise unless ``reference`` is a name, a file, a static selection, or a list of at least one index."""
    if _chooses(reference):
        return
    if isinstance(reference, str):
        if not reference:
            raise ValueError('Expected `reference` to be "self", "loader" or the name of a metric, but got "".')
        if _is_score_file(reference) and not Path(reference).is_file():
            raise ValueError(
                f"Expected `reference` to be a score file, but there is no file '{reference}'. Make one by "
                f"`lightning-prune score --config run.yaml --method SmallLoss --save_to {reference}`."
            )
        return
    if not isinstance(reference, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in reference):
        raise TypeError(
            "Expected `reference` to be a string, a list of training indices or a `StaticPruning`, but got "
            f"{reference!r}."
        )
    if not reference or min(reference) < 0:
        raise ValueError(f"Expected `reference` to hold at least one index, none negative, but got {reference}.")


def _clean_ids(reference: str | list[int] | PruningCallback, num_samples: int) -> Tensor | None:
    """Return the training samples that are the reference, or None if it is something else."""
    if isinstance(reference, list):
        if max(reference) >= num_samples:
            raise ValueError(f"Expected `reference` indices in [0, {num_samples}), but got {max(reference)}.")
        return torch.tensor(reference)
    chooser: Any = reference
    if _is_score_file(reference):
        chooser = importlib.import_module("lightning_prune.scoring").StaticPruning(reference, 1 - _PSEUDO_CLEAN)
    return chooser.choose(num_samples).indices if _chooses(chooser) else None


def _chooses(reference: object) -> bool:
    """Return whether this is a `StaticPruning`, without an import of it."""
    return isinstance(reference, PruningCallback) and callable(getattr(reference, "choose", None))
