"""Types hold for users: `mypy --strict` goes over the examples and a user's module, which uses every public name."""

from __future__ import annotations

import ast
import importlib

import pytest

import lightning_prune
from tests.processes import ROOT

PARTS = ("analysis", "compare", "data", "functional", "report", "schedules", "scoring", "testing")
TREE = ast.parse((ROOT / "tests" / "user_module.py").read_text())


def test_mypy_looks_at_them():
    config = (ROOT / "pyproject.toml").read_text()
    assert 'files = ["lightning_prune", "examples", "tests/user_module.py"]' in config
    assert "strict = true" in config
    assert (ROOT / "lightning_prune" / "py.typed").exists()


def test_the_users_module_uses_the_names_of_the_package():
    used = {node.id for node in ast.walk(TREE) if isinstance(node, ast.Name)}
    assert set(lightning_prune.__all__) <= used


@pytest.mark.parametrize("part", PARTS)
def test_the_users_module_uses_the_names_of_a_part(part):
    attributes = [node for node in ast.walk(TREE) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == part}
    assert set(importlib.import_module(f"lightning_prune.{part}").__all__) <= used | set(lightning_prune.__all__)


def test_every_part_is_looked_at():
    assert {*PARTS} == {*lightning_prune._ON_FIRST_USE, "compare"}
