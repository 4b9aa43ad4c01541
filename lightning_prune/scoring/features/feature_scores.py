"""Scores of a trained module's features, in the format of those that training leaves behind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune.core.checks import check_choice, check_int, check_ratio
from lightning_prune.core.names import class_names
from lightning_prune.core.plan import num_keep
from lightning_prune.core.rng import isolated_rng, make_generator
from lightning_prune.scoring._inputs import check_targets
from lightning_prune.scoring.features.collect import Features, batches, collect_features, in_order, split_batch
from lightning_prune.scoring.features.contextual_diversity import contextual_diversity
from lightning_prune.scoring.features.craig import craig
from lightning_prune.scoring.features.dataset_pruning import dataset_pruning, influence_vectors
from lightning_prune.scoring.features.deepfool import deepfool
from lightning_prune.scoring.features.elfs import agreement, double_end_scores, proxy_margins, pseudo_labels
from lightning_prune.scoring.features.glister import glister
from lightning_prune.scoring.features.herding import herding
from lightning_prune.scoring.features.influence import influence
from lightning_prune.scoring.features.kcenter import kcenter
from lightning_prune.scoring.features.moderate import moderate_distance
from lightning_prune.scoring.features.moso import moso
from lightning_prune.scoring.features.prune4rel import prune4rel
from lightning_prune.scoring.features.ssp import spherical_kmeans, ssp_score
from lightning_prune.scoring.recorder import TRACKERS
from lightning_prune.scoring.score_file import Keep, ScoreFile
from lightning_prune.scoring.selectors.rank import rank_scores
from lightning_prune.scoring.trackers.tracker import Tracker
from lightning_prune.trainer.probe import evaluating


@final
@dataclass(frozen=True)
class _Result:
    scores: Tensor
    keep: Keep = "high"
    columns: dict[str, Tensor] = field(default_factory=dict)
    num_ranked: int | None = None


_Rule = Callable[[Features, float, torch.Generator, dict[str, Any]], _Result]


def _chosen(rule: Callable[[Features, int, torch.Generator, dict[str, Any]], Tensor]) -> _Rule:
    """Return the rule whose ids, in the order of choice, become scores."""

    def scored(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
        order = rule(shown, num_keep(len(shown), keep_ratio), generator, parameters)
        return _Result(rank_scores(order, len(shown)), num_ranked=len(order))

    return scored


def _craig(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    chosen = craig(shown.output_grads, shown.features, shown.targets, keep_ratio, **parameters)
    scores, weights = torch.zeros(2, len(shown), dtype=torch.float32)
    scores[chosen.indices.cpu()] = 1
    if chosen.weights is not None:
        weights[chosen.indices.cpu()] = chosen.weights.cpu()
    return _Result(scores, columns={"weights": weights}, num_ranked=len(chosen))


def _num_clusters(shown: Features, parameters: dict[str, Any]) -> int:
    """Return the number that was given, or that of the classes."""
    clusters = parameters.pop("num_clusters", None)
    return len(torch.unique(shown.targets)) if clusters is None else clusters


def _ssp(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    clusters = _num_clusters(shown, parameters)
    return _Result(
        ssp_score(shown.features, spherical_kmeans(shown.features, clusters, generator=generator, **parameters))
    )


def _moderate(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    return _Result(moderate_distance(shown.features, shown.targets, **parameters), keep="middle")


def _influence(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    return _Result(influence(shown.logits, shown.features, shown.targets, generator=generator, **parameters))


def _dp(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    searched = {name: parameters.pop(name) for name in ("max_change", "swaps") if name in parameters}
    vectors = influence_vectors(shown.logits, shown.features, shown.targets, generator=generator, **parameters)
    size = None if searched.get("max_change") is not None else len(shown) - num_keep(len(shown), keep_ratio)
    kept = torch.ones(len(shown), dtype=torch.bool)
    kept[dataset_pruning(vectors, size, generator=generator, **searched)] = False
    lengths = vectors.norm(dim=1).cpu().masked_fill(~kept, -1)
    order = lengths.argsort(descending=True, stable=True)[: int(kept.sum())]  # the most influential are kept longest
    return _Result(rank_scores(order, len(shown)), num_ranked=len(order))


def _elfs(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    clusters = _num_clusters(shown, parameters)
    cutoff, clean = parameters.pop("hard_cutoff", None), parameters.pop("pseudo_clean", False)
    labels = pseudo_labels(shown.features, clusters, generator=generator)
    margins = proxy_margins(shown.features, labels, generator=generator, **parameters)
    columns = {"pseudo_labels": labels, "margin": margins}
    if clean:
        return _Result(margins - 2 * (~agreement(labels, shown.targets)).float(), columns=columns)
    return _Result(double_end_scores(margins, (1 - keep_ratio) / 3 if cutoff is None else cutoff), columns=columns)


def _moso(shown: Features, keep_ratio: float, generator: torch.Generator, parameters: dict[str, Any]) -> _Result:
    return _Result(moso(shown.logits, shown.features, shown.targets))


_CHOSEN = "chosen early; 0: not chosen"
_RULES: dict[str, tuple[_Rule, tuple[str, ...], str]] = {
    "ContextualDiversity": (
        _chosen(lambda s, k, g, p: contextual_diversity(s.probs, k, generator=g, **p)),
        ("first",),
        _CHOSEN,
    ),
    "CRAIG": (_craig, (), "chosen, with a weight; 0: not chosen"),
    "DP": (
        _dp,
        ("damping", "dimensions", "hessian_samples", "max_change", "swaps"),
        "kept, and influential; 0: pruned",
    ),
    "ELFS": (
        _elfs,
        ("hard_cutoff", "learning_rate", "num_clusters", "num_epochs", "pseudo_clean"),
        "hard, but not the very hardest; or, of a pseudo-clean set, typical and labelled as its neighbours",
    ),
    "GLISTER": (
        _chosen(lambda s, k, g, p: glister(s.logits, s.features, s.targets, k, **p)),
        ("learning_rate", "rounds", "step"),
        _CHOSEN,
    ),
    "Herding": (_chosen(lambda s, k, g, p: herding(s.features, k, **p)), ("farthest",), _CHOSEN),
    "Influence": (
        _influence,
        ("damping", "hessian_samples", "kind"),
        "the trained parameters, or the loss, depend on it: hard or mislabelled",
    ),
    "KCenter": (_chosen(lambda s, k, g, p: kcenter(s.features, k, generator=g, **p)), ("first",), _CHOSEN),
    "Moderate": (_moderate, ("center",), "far from the centre of its class; the middle is typical"),
    "MoSo": (_moso, (), "its gradient agrees with that of the others"),
    "Prune4ReL": (
        _chosen(lambda s, k, g, p: prune4rel(s.probs, s.features, k, **p)),
        ("threshold", "temperature"),
        _CHOSEN,
    ),
    "SSP": (_ssp, ("num_clusters", "max_iter"), "far from every prototype: hard"),
}
"""By name: the rule, the arguments that it takes, and what a high score says."""
_TAKE_VALIDATION = ("GLISTER", "Influence")
"""Methods that can look at a validation set."""
FINISHED = ("Entropy", "LeastConfidence", "Margin", "SmallLoss")
"""Trackers that papers use on a trained module."""
ONE_VISIT = ("EL2N", "GraNd", *FINISHED)
"""Trackers that make sense of a single visit: that of a trained module."""
MEAN_OF_STATES = ("DeepFool", *ONE_VISIT, "Influence", "MoSo")
"""Methods whose scores of several states of a model have a mean that says something."""
FEATURE_METHODS = tuple(sorted([*_RULES, "DeepFool"]))
"""Methods that need a trained module; those of :data:`ONE_VISIT` may have one."""


def score_features(
    method: str,
    features: Features,
    *,
    validation: Features | None = None,
    prune_ratio: float = 0.3,
    seed: int = 0,
    **parameters: Any,
) -> ScoreFile:
    """Score a training set by what a trained module shows of it.

    Some methods do not score, but choose sample after sample: ContextualDiversity, CRAIG, DP, GLISTER, Herding, KCenter
    and Prune4ReL. They choose ``num_keep(n, 1 - prune_ratio)`` samples; the first has the highest score, the last 1,
    the others 0, so :class:`StaticPruning` with at least this ratio keeps what was chosen first. Of CRAIG all those
    chosen have score 1 and a loss weight, and the ratio must be the same.

    Args:
        method: ``"ContextualDiversity"``, ``"CRAIG"``, ``"DP"``, ``"ELFS"``, ``"GLISTER"``, ``"Herding"``,
            ``"Influence"``, ``"KCenter"``, ``"Moderate"``, ``"MoSo"``, ``"Prune4ReL"``, ``"SSP"``; or a tracker that
            can do with one visit: ``"EL2N"``, ``"Entropy"``, ``"GraNd"``, ``"LeastConfidence"``, ``"Margin"``,
            ``"SmallLoss"``.
        features: What :func:`collect_features` returned; one pass serves any number of methods. Prune4ReL's authors
            show the module strongly augmented views, SSP's take the features of a self-supervised one.
        validation: The same of a validation set, for GLISTER, and for Influence with ``kind="loss"``. None: they look
            at the training set.
        prune_ratio: Least share that is going to be pruned, in [0, 1), for the methods that choose.
        seed: Seed of the methods that draw.
        **parameters: Further arguments of the method's function: ``threshold=0.975`` of :func:`prune4rel`.

    Returns:
        The scores by sample id; ``save(path)`` writes them.

    Raises:
        ValueError: If the method or a parameter is unknown, an argument is out of range, ``features`` lack what the
            method needs, or it has no use for a validation set.

    Example:
        >>> features = Features(features=torch.tensor([[0.0], [1.0], [5.0], [9.0]]))
        >>> score_features("KCenter", features, prune_ratio=0.25, first=0).scores
        tensor([3., 0., 1., 2.])
    """
    check_choice("method", method, tuple(sorted([*_RULES, *ONE_VISIT])))
    check_parameters(method, parameters)
    check_ratio("prune_ratio", prune_ratio)
    check_int("seed", seed, low=0)
    if validation is not None:
        _check_takes_validation(method)
    if method in ONE_VISIT:
        tracker = TRACKERS[method](len(features), **parameters)
        result, stated, high = _one_visit(tracker, features), tracker.parameters, tracker.high
    else:
        rule, _, high = _RULES[method]
        given = {**parameters, **_validating(validation)}
        result = rule(features, 1 - prune_ratio, make_generator(seed, 0, method), given)
        stated = {**parameters, "seed": seed}
        stated |= {"validation_samples": len(validation)} if validation is not None else {}
        stated |= {"prune_ratio": prune_ratio} if result.num_ranked is not None or method == "ELFS" else {}
    columns = result.columns | ({"targets": features.targets} if "targets" in features.given else {})
    return ScoreFile.make(
        result.scores,
        method=method,
        keep=result.keep,
        parameters=stated,
        columns=columns,
        num_ranked=result.num_ranked,
        high=high,
    )


def score_module(
    method: str,
    module: nn.Module,
    dataloader: DataLoader[Any],
    *,
    val_dataloader: DataLoader[Any] | None = None,
    prune_ratio: float = 0.3,
    seed: int = 0,
    progress: bool = True,
    **parameters: Any,
) -> ScoreFile:
    """Score a training set with a trained module, in one pass over it.

    Args:
        method: Any of :func:`score_features`, or ``"DeepFool"``, which calls ``module(inputs)`` on batches
            ``(inputs, targets, ...)``.
        module: The trained module; see :func:`collect_features`.
        dataloader: A loader of the dataset to be pruned.
        val_dataloader: One of a validation set, whose batches are of the same kind, for GLISTER, and for Influence with
            ``kind="loss"``. None: they look at the training set.
        prune_ratio: Least share that is going to be pruned, in [0, 1), for the methods that choose.
        seed: Seed of the methods and the transforms that draw.
        progress: Show a progress bar.
        **parameters: Further arguments of the method's function.

    Returns:
        The scores by sample id; ``save(path)`` writes them.

    Raises:
        MisconfigurationException: If a loader is no DataLoader that could be pruned.
        TypeError: If a batch or an output is of another kind.
        ValueError: If the method or a parameter is unknown, an argument is out of range, the module does not show what
            the method needs, or it has no use for a validation set.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1]))
        >>> file = score_module("Herding", nn.Linear(1, 2), DataLoader(dataset, 2), prune_ratio=0.5, progress=False)
        >>> file.scores
        tensor([0., 1., 2., 0.])
    """
    check_choice("method", method, tuple(sorted([*FEATURE_METHODS, *ONE_VISIT])))
    check_parameters(method, parameters)
    names = class_names(dataloader.dataset)
    if val_dataloader is not None:
        _check_takes_validation(method)
    if method != "DeepFool":
        shown = collect_features(module, dataloader, seed=seed, progress=progress)
        held_out = (
            None if val_dataloader is None else collect_features(module, val_dataloader, seed=seed, progress=progress)
        )
        file = score_features(method, shown, validation=held_out, prune_ratio=prune_ratio, seed=seed, **parameters)
        file.meta.update({"classes": names} if names else {})
        return file
    scores, targets = [], []
    with evaluating(module), isolated_rng(seed):
        for _, batch in batches(module, in_order(dataloader), method, progress=progress):
            inputs, labels = split_batch(batch)
            scores.append(deepfool(module, inputs, **parameters).cpu())
            targets.append(check_targets(labels, rows=len(scores[-1])).cpu())
    columns = {"targets": torch.cat(targets)}
    high = "far from the decision boundary: easy"
    scored = torch.cat(scores)
    return ScoreFile.make(
        scored, method=method, keep="low", parameters=parameters, columns=columns, high=high, classes=names
    )


def uses_validation(method: str, parameters: dict[str, Any]) -> bool:
    """Return whether a method, with these parameters, scores by the loss of a validation set where there is one."""
    return method == "Influence" and parameters.get("kind") == "loss"


def _check_takes_validation(method: str) -> None:
    if method not in _TAKE_VALIDATION:
        raise ValueError(
            f"Expected no validation set for {method!r}, which scores by the training set alone, but got one. Leave it "
            f"out; {' and '.join(_TAKE_VALIDATION)} take one."
        )


def _validating(validation: Features | None) -> dict[str, Tensor]:
    """Return the arguments that hand a validation set to a rule."""
    if validation is None:
        return {}
    shown = {"logits": validation.logits, "features": validation.features, "targets": validation.targets}
    return {f"val_{name}": values for name, values in shown.items()}


def check_parameters(method: str, parameters: dict[str, Any]) -> None:
    """Refuse unknown parameters before anything takes long."""
    if method in TRACKERS:
        names = inspect.signature(TRACKERS[method].__init__).parameters
        known = tuple(name for name in names if name not in {"self", "num_samples"})
    else:
        known = {"DeepFool": ("max_iter",), "Random": ("seed",)}.get(method) or _RULES[method][1]
    if unknown := sorted(set(parameters) - set(known)):
        takes = f"takes {', '.join(known)}" if known else "takes none"
        raise ValueError(f"Expected parameters of {method}, which {takes}, but got {', '.join(unknown)}.")


def try_parameters(method: str, parameters: dict[str, Any]) -> None:
    """Refuse parameters out of range, before a module is trained for them: score two samples, of no module."""
    sized = {"first", "num_clusters"}  # their range is that of the dataset
    parameters = {name: value for name, value in parameters.items() if name not in sized}
    eye = torch.eye(2, dtype=torch.float32)
    if method == "DeepFool":
        deepfool(nn.Identity(), eye, **parameters)
    else:
        score_features(method, Features(logits=eye, targets=torch.arange(2), features=eye), prune_ratio=0, **parameters)


def _one_visit(tracker: Tracker, shown: Features) -> _Result:
    inputs = {name: getattr(shown, name) for name in tracker.needs}
    tracker.update(torch.arange(len(shown), device=next(iter(inputs.values())).device), **inputs)
    return _Result(tracker.compute(), tracker.keep)
