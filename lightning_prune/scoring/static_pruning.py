"""Train on a fixed coreset, chosen by scores of an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any, Literal, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_ratio
from lightning_prune.core.plan import Selection, num_keep
from lightning_prune.core.ratio import RatioSetting
from lightning_prune.core.rng import make_generator
from lightning_prune.core.table import SampleTable
from lightning_prune.scoring._inputs import check_targets
from lightning_prune.scoring.random_scores import RANDOM, RANDOM_CORESET, random_scores
from lightning_prune.scoring.score_file import ScoreFile, has_weights, load_scores
from lightning_prune.scoring.selectors.beta_sampling import beta_sampling
from lightning_prune.scoring.selectors.ccs import ccs
from lightning_prune.scoring.selectors.rank import select_middle, select_per_class, select_top
from lightning_prune.trainer.callback import PruningCallback

_SELECTORS = ("top", "middle", "ccs", "beta")

_ARGUMENTS = {"ccs": ("cutoff_scores", "hard_cutoff", "num_strata"), "beta": ("c_d", "difficulty_mean")}
"""What ``selector_args`` may hold, by selector."""


@final
class StaticPruning(PruningCallback):
    """Train every epoch on the same coreset; ``prune_ratio`` is the share of all samples left out.

    The coreset is chosen before the first step and is part of the checkpoint: a resumed run keeps it, whatever has
    become of the score file. Unless it has weights, a module without `WeightedLossMixin` will do.

    Args:
        scores: Path of a score file, its content, or scores ``(n,)`` by sample id. If the file has loss weights, as
            CRAIG's has, they are applied, with a mean of 1. ``"random"``: a random coreset, the baseline, of ``seed``.
        prune_ratio: Share of all samples left out, in [0, 1). Of a method that chooses samples instead of scoring all,
            at least the one that it chose for, and with weights just that.
        selector: ``"top"``: what the score's paper keeps, which is an end, or of Moderate the middle. ``"middle"``:
            around the median. ``"ccs"``: cut the hardest, then strata. ``"beta"``: DUAL's beta sampling. Or a function
            of scores and k that returns ids.
        keep: End that ``"top"`` keeps. None: what the score file says; of a tensor, ``"high"``.
        class_balanced: Apply the selector inside every class, with a budget in proportion to its size. Needs labels:
            from ``targets``, or from a file that :class:`ScoreRecorder` wrote.
        targets: Class ids ``(n,)`` for ``class_balanced``.
        selector_args: Further arguments of the selector: for ``"ccs"`` ``hard_cutoff``, ``num_strata`` and
            ``cutoff_scores`` (tensor or path of an AUM file; of scores other than AUM a cutoff needs it), for
            ``"beta"`` ``c_d`` and ``difficulty_mean`` (in a DUAL file already).
        seed: Seed of ``"random"`` and of the selectors that draw. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; before the first step, if scores do not fit the dataset.

    Example:
        >>> StaticPruning("scores/tdds.npz", prune_ratio=0.7).prune_ratio
        0.7
    """

    needs_mixin = False
    ranks_by_scores = False
    set_by_ratio = RatioSetting(read_in="setup_columns")
    takes_new_samples = False
    needs_arguments = ("it needs a file of scores, or the word `random`", "scores: FILE.npz")

    def __init__(
        self,
        scores: str | PathLike[str] | Tensor | ScoreFile,
        prune_ratio: float = 0.5,
        selector: str | Callable[[Tensor, int], Tensor] = "top",
        *,
        keep: Literal["high", "low"] | None = None,
        class_balanced: bool = False,
        targets: Tensor | None = None,
        selector_args: dict[str, Any] | None = None,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        if callable(prune_ratio):
            raise TypeError(
                f"Expected `prune_ratio` to be a number in [0, 1), but got the schedule {prune_ratio!r}: StaticPruning "
                "chooses once, before the run. For a share that changes, use a method that selects anew each epoch."
            )
        check_ratio("prune_ratio", prune_ratio)
        if not callable(selector):
            check_choice("selector", selector, _SELECTORS)
        if keep is not None:
            check_choice("keep", keep, ("high", "low"))
        known = _ARGUMENTS.get(selector, ()) if isinstance(selector, str) else tuple(selector_args or ())
        if unknown := [name for name in selector_args or () if name not in known]:
            raise ValueError(
                f"Expected `selector_args` of {selector!r}, of {list(known)}, but got {', '.join(map(repr, unknown))}."
            )
        self.scores = scores
        self.prune_ratio = prune_ratio
        self.selector = selector
        self.keep = keep
        self.class_balanced = class_balanced
        self.targets = targets
        self.selector_args = selector_args
        self.weighs_losses = has_weights(scores)

    def setup_columns(self, registry: SampleTable) -> None:
        """Choose the coreset, unless a checkpoint holds it."""
        self.weighs_losses = has_weights(self.scores)  # the file may have been written since this was constructed
        registry.add_column("coreset", dtype=torch.bool)
        coreset = registry.column("coreset")
        if bool(coreset.any()):
            return
        chosen = self.choose(registry.num_samples)
        coreset[chosen.indices.to(coreset.device)] = True
        if chosen.weights is not None:
            registry.add_column("coreset_weights")
            registry.column("coreset_weights")[chosen.indices.to(coreset.device)] = chosen.weights.to(coreset.device)

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Return the coreset."""
        chosen = Selection.from_mask(registry.column("coreset"))
        if not registry.has_column("coreset_weights"):
            return chosen
        return replace(chosen, weights=registry.column("coreset_weights")[chosen.indices])

    def choose(self, num_samples: int) -> Selection:
        """Return the coreset: ids ``(k,)``, ascending, and the weights that belong to them.

        Raises:
            ValueError: If the scores are not of ``num_samples`` samples, or the selector cannot work with them.
        """
        file = self._file(num_samples)
        if self.prune_ratio == 0:
            return Selection.all(num_samples)
        k = num_keep(num_samples, 1 - self.prune_ratio)
        _check_ranked(file, k)
        chosen = Selection(self._choose_ids(file, k).sort().values)
        chosen.check(num_samples)
        if file.num_ranked is not None and not bool((file.scores[chosen.indices] > 0).all()):
            raise ValueError(
                f"Expected to keep samples that {file.meta['method']} chose, but others were selected too. Use "
                "`selector='top'` without `class_balanced`."
            )
        if "weights" not in file.columns:
            return chosen
        weights = file.columns["weights"][chosen.indices].double()
        return replace(chosen, weights=(weights / weights.mean()).float())

    def _file(self, num_samples: int) -> ScoreFile:
        """Return the scores that were given, or random ones."""
        if isinstance(self.scores, str) and self.scores == RANDOM:
            generator = make_generator(self.resolved_seed, 0, RANDOM_CORESET)
            return ScoreFile.make(random_scores(num_samples, generator=generator), method="Random", keep="high")
        return _read(self.scores, num_samples)

    def _choose_ids(self, file: ScoreFile, k: int) -> Tensor:
        num_samples = len(file.scores)
        generator = make_generator(self.resolved_seed, 0, "coreset")
        options = self._options(file, num_samples)
        if not self.class_balanced:
            return self._pick(file.scores, k, file, options, generator)
        targets = self.targets if self.targets is not None else file.columns.get("targets")
        if targets is None:
            raise ValueError(
                "Expected class ids for `class_balanced=True`, but the scores come without. Pass `targets=...`."
            )
        check_targets(targets, rows=num_samples)
        return select_per_class(
            targets,
            k,
            lambda ids, budget: self._pick(
                file.scores[ids],
                budget,
                file,
                {name: value[ids] if isinstance(value, Tensor) else value for name, value in options.items()},
                generator,
            ),
        )

    def _pick(
        self, scores: Tensor, k: int, file: ScoreFile, options: dict[str, Any], generator: torch.Generator
    ) -> Tensor:
        if callable(self.selector):
            return self.selector(scores, k, **options)
        keep = self.keep or file.keep
        if self.selector == "top" and keep != "middle":
            return select_top(scores, k, keep, **options)
        if self.selector in ("top", "middle"):
            return select_middle(scores, k / len(scores), **options)
        if self.selector == "ccs":
            return ccs(scores, k, generator=generator, **options)
        return beta_sampling(scores, k=k, generator=generator, **options)

    def _options(self, file: ScoreFile, num_samples: int) -> dict[str, Any]:
        """Return the selector's further arguments, per-sample ones as tensors."""
        options = dict(self.selector_args or {})
        if self.selector == "beta" and "difficulty_mean" not in options:
            if "difficulty_mean" not in file.columns:
                raise ValueError(
                    "Expected `difficulty_mean` for beta sampling, but the scores come without. Use a DUAL score file, "
                    "or pass `selector_args={'difficulty_mean': ...}`."
                )
            options["difficulty_mean"] = file.columns["difficulty_mean"]
        if self.selector == "ccs" and options.get("hard_cutoff"):
            if "cutoff_scores" not in options and file.meta.get("method", "AUM") != "AUM":
                raise ValueError(
                    f"Expected `cutoff_scores` for a hard cutoff of {file.meta['method']} scores, but got none: the "
                    "hardest samples are those of low AUM. Pass `selector_args={'cutoff_scores': <AUM file>, ...}`."
                )
            if "cutoff_scores" in options:
                options["cutoff_scores"] = _read(options["cutoff_scores"], num_samples).scores
        return options


def _check_ranked(file: ScoreFile, k: int) -> None:
    """Refuse to keep more samples than a method chose, or others than those that its weights stand for."""
    ranked = file.num_ranked
    if ranked is None or k == ranked or (k < ranked and "weights" not in file.columns):
        return
    bound = "=" if "weights" in file.columns else "<="
    raise ValueError(
        f"Expected to keep k {bound} {ranked} samples, which {file.meta['method']} chose, but got {k}. Score again "
        "with the `prune_ratio` of this run."
    )


def _read(scores: str | PathLike[str] | Tensor | ScoreFile, num_samples: int) -> ScoreFile:
    if not isinstance(scores, (Tensor, ScoreFile)):
        return load_scores(scores, num_samples)
    file = scores if isinstance(scores, ScoreFile) else ScoreFile(scores.detach().cpu().float(), {})
    if file.scores.shape != (num_samples,):
        raise ValueError(
            f"Expected `scores` of the {num_samples} samples of the training dataset, shape ({num_samples},), but got "
            f"{tuple(file.scores.shape)}."
        )
    return file
