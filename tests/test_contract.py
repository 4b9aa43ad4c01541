"""Every exported method keeps the contract that ships with the package; what is about our own methods only."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil
from pathlib import Path

import pytest

from lightning_prune.scoring import ScoreRecorder, load_scores
from tests import contract
from tests.helpers import Model, make_loader, make_trainer

# Runs shorter than a window, as some are here, or too short for a budget, are warned about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:AlignPrune.window=2. ranks by alignment only once"),
    pytest.mark.filterwarnings("ignore:Budget.save=0.3. (cannot be kept|was missed)"),
]

ROOT = Path(__file__).parent.parent
SHARED = {"seed", "warmup_epochs", "scale_lr_schedule", "log"}

methods = pytest.mark.parametrize("name", contract.METHODS)

globals().update({cls.__name__: cls for cls in map(contract.contract_of, contract.CASES)})


def test_there_are_methods():
    assert {"InfoBatch", "RandomPruning", "StaticPruning"} <= set(contract.METHODS)
    assert sum(name.startswith("Test") for name in globals()) == len(contract.CASES)


def test_recorders_can_be_copied_and_pickled(tmp_path):
    recorder = ScoreRecorder(["AUM", "EL2N"], tmp_path / "scores")
    found = []
    for one in (recorder, copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        make_trainer(one, max_epochs=5).fit(Model(), make_loader())
        found.append([load_scores(path).scores.tolist() for path in sorted((tmp_path / "scores").glob("*.npz"))])
        shutil.rmtree(tmp_path / "scores")
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]


@methods
def test_docstring_and_signature_agree(name):
    """Every argument is explained, in order, and nothing that is not one; what is raised is said."""
    cls = contract.METHODS[name]
    parameters = list(inspect.signature(cls).parameters.values())
    explained = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(":")[0].strip() for line in explained if line[4] != " "] == [p.name for p in parameters]
    assert "Raises:\n" in inspect.getdoc(cls)
    assert {p.name for p in parameters} >= SHARED
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name in SHARED)
    assert all(p.annotation is not p.empty for p in parameters)


@methods
def test_is_in_the_documentation(name):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"`{name}" in page.read_text() for page in pages)
    assert name in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("case", [c for c in contract.CASES if "prune_ratio" in contract.make(c).__dict__])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "half"], ids=str)
def test_prune_ratio_is_checked(case, value):
    with pytest.raises((TypeError, ValueError), match=r"Expected `prune_ratio` to be a number in \[0, 1\)"):
        contract.make(case, prune_ratio=value)
