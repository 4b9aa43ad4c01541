"""Every exported pruning method, and how to construct it, for `lightning_prune.testing.MethodContract` and other tests.

A method joins by being exported. It needs an entry in `SETTINGS` only where it cannot be constructed with
its defaults, or where these would prune nothing in five epochs of forty samples.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning_prune
import lightning_prune.scoring
from lightning_prune import PruningCallback
from lightning_prune.testing import MethodContract
from tests.helpers import Keep

FIXTURES = Path(__file__).parent / "fixtures"

SETTINGS: dict[str, dict[str, Any]] = {
    # A name may be followed by what is special about it. Values are what a yaml file would hold.
    "AlignPrune": {"base": {"class_path": "lightning_prune.InfoBatch"}, "window": 2},
    "AlignPrune, missing held": {"base": {"class_path": "lightning_prune.SeTa"}, "window": 2, "missing": "hold"},
    "BatchLossScore": {"base": {"class_path": "lightning_prune.SeTa", "init_args": {"window_scale": 0.6}}},
    "Budget": {"base": {"class_path": "lightning_prune.InfoBatch", "init_args": {"anneal_ratio": 1.0}}, "save": 0.3},
    "Budget, within batches": {"base": {"class_path": "lightning_prune.DivBS"}, "save": 0.3},
    "EpsilonGreedy": {"every_n_epochs": 2},
    "IES": {"threshold": 0.1, "moving_average": 1},
    "InfoBatch, coins": {"mode": "bernoulli"},
    "RandomPruning": {"rescale": True},
    "RePB": {"window_batches": 2},
    "RePB, norms": {"score": "grad_norm", "rule": "importance", "target_keep": 0.6},
    "RHOLoss": {"prune_ratio": 0.5, "irreducible_losses": str(FIXTURES / "irreducible_losses.npy")},
    "SelectiveBackprop": {"start": 0.2},
    "SeTa": {"window_scale": 0.6},
    "StaticPruning": {"scores": str(FIXTURES / "scores.npz")},
    "UCB": {"every_n_epochs": 2},
}
NOTHING_PRUNED: dict[str, dict[str, Any]] = {
    # Where `prune_ratio=0` is not how to say it.
    "AlignPrune": {"base": {"class_path": "lightning_prune.InfoBatch", "init_args": {"prune_ratio": 0.0}}},
    "IES": {"threshold": 0.0},
    "OrderDP": {"explore_ratio": 1.0, "exploit_ratio": 1.0},
    "SeTa": {"prune_ratio": 0.0, "window_scale": 1.0},
}
NOTHING_PRUNED |= {case: {"save": 0.0} for case in SETTINGS if case.startswith("Budget")}
NOTHING_PRUNED["BatchLossScore"] = NOTHING_PRUNED["AlignPrune"]
NOTHING_PRUNED["AlignPrune, missing held"] = NOTHING_PRUNED["AlignPrune"]
BY_BATCH = {"BatchLossScore", "RePB, norms"}
"""Epoch-level methods whose scores depend on which samples share a batch; or, by windows of one, a step, which ranks
cut otherwise in an epoch that would end in a batch of one."""
FROM_FILES = {"RHOLoss", "StaticPruning"}
"""Methods that read values of the forty samples."""


def exported_methods() -> dict[str, type[PruningCallback]]:
    """Return every method that the package exports, by name."""
    found = {}
    for module in (lightning_prune, lightning_prune.scoring):
        things = {name: getattr(module, name) for name in module.__all__}
        found |= {
            name: thing
            for name, thing in things.items()
            if isinstance(thing, type) and issubclass(thing, PruningCallback) and thing is not PruningCallback
        }
    return found


METHODS = exported_methods()
CASES = [*METHODS, *(name for name in SETTINGS if ", " in name and name.split(", ")[0] in METHODS)]


def method_of(case: str) -> type[PruningCallback]:
    return METHODS[case.split(", ")[0]]


def class_path(case: str) -> str:
    """Return where a user finds a case's class."""
    name = case.split(", ")[0]
    module = lightning_prune if name in lightning_prune.__all__ else lightning_prune.scoring
    return f"{module.__name__}.{name}"


def picks(case: str) -> bool:
    """Return whether a case chooses within the batches of each rank, which then differ from those of one process."""
    return case != "Keep" and make(case).picks_in_batch


def arguments(case: str, **changes: Any) -> dict[str, Any]:
    """Return a case's arguments as a yaml file would hold them."""
    return {"seed": 1, **SETTINGS.get(case, {}), **changes}


def make(case: str, **changes: Any) -> PruningCallback:
    """Construct a case; "Keep" is the tests' own method of given shares."""
    if case == "Keep":
        return Keep(1.0, 0.5, 1.0, 0.75, weight=1.5)
    values = {key: _build(value) for key, value in arguments(case, **changes).items()}
    return method_of(case)(**values)


def _build(value: Any) -> Any:
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**value.get("init_args", {}))


def make_neutral(case: str) -> PruningCallback | None:
    """Construct a case so that it prunes nothing, or return None where it has no way to say that."""
    if case in NOTHING_PRUNED:
        return make(case, **NOTHING_PRUNED[case])
    if "prune_ratio" in inspect.signature(method_of(case)).parameters:
        return make(case, prune_ratio=0.0, **({"target_keep": 1.0} if "target_keep" in SETTINGS.get(case, {}) else {}))
    return None


def contract_of(case: str) -> type[MethodContract]:
    """Return the tests of a case; `SOAK_KILLS` kills are shared by all cases."""
    settings = {
        "method": staticmethod(partial(make, case)),
        "neutral": None if make_neutral(case) is None else staticmethod(partial(make_neutral, case)),
        "by_batch": case in BY_BATCH,
        "bound_to_data": case in FROM_FILES,
        "columns_by_position": ("align_sums",) if case.startswith("AlignPrune") else (),  # parts are made anew in turns
        "config": {"class_path": class_path(case), "init_args": arguments(case)},
        "kills": math.ceil(int(os.environ.get("SOAK_KILLS", "1")) / len(CASES)),
    }
    return type(f"Test{case.title().replace(', ', '').replace(' ', '')}", (MethodContract,), settings)
