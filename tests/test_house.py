"""One house: its floors, its one door to private API, its classes, and what importing it needs."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

import lightning_prune
from benchmarks import imports
from tests.processes import ROOT, python

FLOORS = [
    {"core"},
    {"trainer"},
    {"loop"},
    {"methods", "scoring"},
    {"analysis", "data", "functional", "schedules"},
    {"known"},
    {"parser"},
    {"early"},
    {"report"},
    {""},  # the package's own `__init__`
    {"mistakes"},
    {"cli"},
    {"__main__"},
    {"advise", "compare", "testing"},
]
"""What is on which floor, from below. A module imports its own part of the package, and lower floors."""
LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
ALLOWED = {
    "_pruning_step",  # the package's own, on a module with the mixin
    "_fields",  # public, of named tuples
    "_generate_state_key",  # Lightning's documentation tells authors of callbacks to call it
    "_python_dispatch",  # where torch documents `TorchDispatchMode`, which has no other name
}
"""Names with an underscore that other modules than ``trainer.private`` may use."""


@cache
def read_modules(folder):
    """Return the syntax trees of a folder's modules, by dotted name."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


PACKAGE = read_modules("lightning_prune")


def imported(tree):
    """Yield what a module imports, wherever in it, as (module, name), name None for ``import module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def edges(name):
    """Return which modules of the package a module imports."""
    found = set()
    for module, part in imported(PACKAGE[name]):
        if module.split(".")[0] == "lightning_prune":
            found.add(f"{module}.{part}" if f"{module}.{part}" in PACKAGE else module)
    return found


def part_of(name):
    return ".".join(name.split(".")[1:2])


def test_no_module_imports_itself_in_the_end():
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(edges(name)):
                visit(other, [*path, name])
            done.add(name)

    for name in PACKAGE:
        visit(name, [])


def test_every_part_has_a_floor():
    assert {part_of(name) for name in PACKAGE} <= set().union(*FLOORS)


@pytest.mark.parametrize("name", PACKAGE)
def test_imports_go_down(name):
    floor = {part: number for number, parts in enumerate(FLOORS) for part in parts}
    up = [other for other in edges(name) if part_of(other) != part_of(name)]
    up = [other for other in up if floor[part_of(other)] >= floor[part_of(name)]]
    assert up == []
    if part_of(name) == "core":
        assert not [module for module, _ in imported(PACKAGE[name]) if module.split(".")[0] in LIGHTNING]


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def own_private_names(tree):
    """Return the private names that a module defines: functions, classes, variables, attributes of ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


OWN = {name: own_private_names(tree) | ALLOWED for name, tree in PACKAGE.items()}
INHERITED = set().union(*OWN.values())


def private_uses(tree):
    """Yield (line, object or None for ``self``, name) for each private attribute, also by `getattr` and its kin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, None if is_self(node.value) else ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1].strip("_") in (
            "getattr",
            "setattr",
            "hasattr",
            "delattr",
        ):
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant) and is_private(str(argument.value)):
                    yield node.lineno, ast.unparse(node.args[0]), argument.value


@pytest.mark.parametrize("name", sorted(PACKAGE.keys() - {"lightning_prune.trainer.private"}))
def test_private_api_is_touched_in_one_file_only(name):
    """Attributes with an underscore are the module's own; on ``self``, those of a class of the package."""
    tree = PACKAGE[name]
    foreign = [f"{m}.{part}".split(".") for m, part in imported(tree) if m.split(".")[0] != "lightning_prune"]
    assert [".".join(names) for names in foreign if set(filter(is_private, names)) - ALLOWED] == []
    assert [use for use in private_uses(tree) if use[2] not in (INHERITED if use[1] is None else OWN[name])] == []


def test_no_section_banners():
    """A class or a module that needs them is two."""
    long = re.compile("-{21,}")
    for name in PACKAGE | read_modules("examples"):
        path = ROOT / name.replace(".", "/")
        text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert not long.search(text), name


CLASSES = {
    (name, node.name): (node, tree)
    for name, tree in (PACKAGE | read_modules("examples")).items()
    if not name.startswith("examples.tutorials.")  # what a user writes
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}


def is_final(node):
    return any(ast.unparse(decorator) in ("final", "typing.final") for decorator in node.decorator_list)


def is_abstract(node):
    """Return whether a class says that it is abstract: a base, an abstract method, or a mixin by its name."""
    says = {ast.unparse(base).split("[")[0] for base in node.bases} & {"ABC", "Protocol"}
    methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
    return bool(says) or node.name.endswith("Mixin") or any(
        ast.unparse(decorator) == "abstractmethod" for method in methods for decorator in method.decorator_list
    )  # fmt: skip


@pytest.mark.parametrize("key", CLASSES, ids=".".join)
def test_every_class_is_abstract_or_final(key):
    """So that a subclass refines what is meant to be refined, and no finished class changes under another."""
    node, tree = CLASSES[key]
    assert is_final(node) != is_abstract(node)
    source = {part: module for module, part in imported(tree)}
    for base in (ast.unparse(base).split("[")[0] for base in node.bases):
        module = source.get(base, key[0])
        parents = [parent for (where, name), (parent, _) in CLASSES.items() if name == base and where == module]
        if not parents and module.split(".")[0] in ("lightning_prune", "examples"):  # exported by another module
            parents = [parent for (_, name), (parent, _) in CLASSES.items() if name == base]
        assert not any(map(is_final, parents)), base


WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in sys.argv[1:] else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Hides the modules named by the arguments, as if they were not installed."""


CORE = """
import importlib, pkgutil
import lightning_prune, lightning_prune.core
for info in pkgutil.iter_modules(lightning_prune.core.__path__, "lightning_prune.core."):
    importlib.import_module(info.name)
from tests.core.runs import Hardest, Run
run = Run(Hardest())
print([run.epoch()["prune/kept_fraction"] < 1 for _ in range(2)], lightning_prune.Selection.__name__)
try:
    lightning_prune.InfoBatch
except ImportError as error:
    print(error)
"""


def test_core_needs_no_lightning():
    """All of it imports, a session trains with a method, and other names say what is missing."""
    answer, _ = python("-c", WITHOUT + CORE, *LIGHTNING)
    assert answer.splitlines() == ["[False, True] Selection", "No module named 'lightning'"]


FORKS = """
import os, sys, traceback
import lightning.pytorch
for code in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""
"""Runs each argument in a process that has imported Lightning, and nothing of this package."""
EXTRAS = ("jsonargparse", "matplotlib", "sklearn", "timm", "pyarrow", "scipy", "pandas", "altair", "jinja2", "pytest")
IMPORTS_NO_EXTRA = """
import sys
before = set(sys.modules)
import lightning_prune
assert not {name.split(".")[0] for name in set(sys.modules) - before} & set(EXTRAS)
"""
NEEDS_NO_EXTRA = """
import sys
for name in list(sys.modules):  # Lightning takes what it finds of them
    if name.split(".")[0] in EXTRAS:
        del sys.modules[name]
sys.argv[1:] = EXTRAS
exec(WITHOUT)
import lightning_prune
assert repr(lightning_prune.InfoBatch()).startswith("InfoBatch(")
assert not set(EXTRAS) & set(sys.modules)
try:
    lightning_prune.testing
except ModuleNotFoundError as error:
    assert "pip install 'lightning-prune[testing]'" in str(error)
else:
    raise AssertionError
"""
PART = """
import sys
import lightning_prune as lp
assert f"lightning_prune.{NAME}" not in sys.modules or NAME in ("analysis", "report", "scoring")  # for callbacks
assert getattr(lp, NAME).__name__ == f"lightning_prune.{NAME}"
assert len(getattr(lp, NAME).__all__) > 1
"""
SHORT_NAMES = """
import lightning_prune
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
callbacks = [{"class_path": "InfoBatch", "init_args": {"prune_ratio": 0.25}}]
cli = LightningCLI(BoringModel, args={"trainer": {"callbacks": callbacks, "logger": False}}, run=False)
assert any(repr(callback).startswith("InfoBatch(prune_ratio=0.25") for callback in cli.trainer.callbacks)
"""


def test_what_the_import_needs_and_gives():
    """No extra, nor the command line's parser; parts on first use; short names for any LightningCLI."""
    constants = f"EXTRAS = {EXTRAS}\nWITHOUT = {WITHOUT!r}\n"
    parts = [f"NAME = {name!r}\n{PART}" for name in ("analysis", "data", "functional", "report", "scoring")]
    own = [constants + IMPORTS_NO_EXTRA, constants + NEEDS_NO_EXTRA, *parts, SHORT_NAMES]
    out, _ = python("-c", FORKS, imports.SCRIPT, *own)
    assert float(out.splitlines()[0]) > 0  # seconds


def test_exported_names():
    assert all(hasattr(lightning_prune, name) for name in lightning_prune.__all__)
    with pytest.raises(AttributeError, match="module 'lightning_prune' has no attribute 'Infobatch'"):
        lightning_prune.Infobatch  # noqa: B018
    by_kind = sorted(lightning_prune.__all__, key=lambda name: (not name.isupper(), name))  # constants, then classes
    assert lightning_prune.__all__ == by_kind
