"""What can be named on the command line, read from the files that define it: to import them would take seconds."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

PACKAGE = Path(__file__).parent
_FILLED_IN = {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
"""Arguments of a Trainer's methods that the command line fills in itself."""
PASSED_ON = ("trainer", "model", "data", "optimizer", "lr_scheduler", "ckpt_path", "weights_only")
"""What the options of ``fit`` begin with that `compare` and `advise` take, too."""
_SHARED = ("config", "print_config", "help", "seed_everything", *PASSED_ON[:-2])
_WORDS = {"_PATH": "path", "_PRECISION_INPUT": "str | int", "_PLUGIN_INPUT": "plugin", "_LITERAL_WARN": "'warn'"}
"""Types by Lightning's own names, in words."""
_COMMANDS = {
    "score": ("scoring/trainer.py", "ScoringTrainer", "score"),
    "find-label-issues": ("analysis/trainer.py", "CommandTrainer", "find_label_issues"),
}
"""Our own commands among those of LightningCLI: file, class and method; the others are methods of Lightning's."""


@final
@dataclass(frozen=True)
class Argument:
    """An argument as its file has it.

    Attributes:
        name: Its name.
        kind: Its type, as text.
        default: Its default, as text; None: it must be given.
        help: The first sentence of what its docstring says.
    """

    name: str
    kind: str
    default: str | None
    help: str = ""


def nearest(word: str, known: Collection[str]) -> str | None:
    """Return the known word that a mistyped one was probably meant to be, or None.

    Example:
        >>> nearest("seed", ["save", "seed_everything"]), nearest("x", ["save"])
        ('seed_everything', None)
    """
    by_lower = {name.lower(): name for name in known}
    begins = [name for name in by_lower if name.startswith(word.lower())]
    near = begins or difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return a question that names the nearest known word, or else all of them.

    Example:
        >>> did_you_mean("compair", ["compare", "fit"])
        ' Did you mean `compare`?'
        >>> did_you_mean("x", ["compare", "fit"])
        ' Known: compare, fit.'
    """
    near = nearest(word, known)
    return f" Did you mean `{near}`?" if near else f" Known: {', '.join(known)}."


def methods() -> Iterator[tuple[str, str, ast.ClassDef]]:
    """Yield the pruning methods: name, first line of the file, class."""
    files = [*(PACKAGE / "methods").glob("[!_]*.py"), PACKAGE / "scoring" / "static_pruning.py"]
    for path in sorted(files, key=lambda path: path.name):
        tree = _read(path)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(mark) == "final" for mark in node.decorator_list):
                yield node.name, (ast.get_docstring(tree) or "").splitlines()[0], node


@functools.cache
def callbacks() -> dict[str, set[str] | None]:
    """Return the package's public classes, and what each is constructed with; None: it does not say."""
    found: dict[str, set[str] | None] = {}
    for node in ast.walk(_read(PACKAGE / "__init__.py")):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_prune."):
            path = PACKAGE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            for alias in node.names:
                init = _function(path, alias.name, "__init__")
                open_ended = init is None or init.args.kwarg is not None
                found[alias.name] = None if open_ended or init is None else {one.name for one in arguments(init)}
    return found


def names_of_methods() -> list[str]:
    """Return the names of the pruning methods, `Budget` among them."""
    return [name for name, _, _ in methods()]


@functools.cache
def lightning_callbacks() -> list[str]:
    """Return the names of Lightning's callbacks."""
    path = _lightning() / "callbacks" / "__init__.py"
    for node in _read(path).body if path.is_file() else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@functools.cache
def trainer_arguments() -> dict[str, Argument]:
    """Return the arguments of Lightning's Trainer by name; none if its file is not where it is looked for."""
    init = _function(_trainer_file(), "Trainer", "__init__")
    return {} if init is None else {argument.name: argument for argument in arguments(init)}


@functools.cache
def command_arguments(command: str) -> dict[str, Argument]:
    """Return the arguments of a command of LightningCLI that are its own, by name."""
    file, owner, name = _COMMANDS.get(command, ("", "Trainer", command))
    function = _function(PACKAGE / file if file else _trainer_file(), owner, name)
    return {} if function is None else {one.name: one for one in arguments(function) if one.name not in _FILLED_IN}


def options_of(command: str) -> set[str]:
    """Return what an option of ``fit``, or of another command of LightningCLI, begins with."""
    return {*_SHARED, *command_arguments(command)}


def arguments(function: ast.FunctionDef) -> list[Argument]:
    """Return the arguments of a function without ``self``, and what its docstring says of each."""
    given = [*function.args.args, *function.args.kwonlyargs]
    defaults: list[ast.expr | None] = [None] * (len(function.args.args) - len(function.args.defaults))
    defaults += [*function.args.defaults, *function.args.kw_defaults]
    told = _told(ast.get_docstring(function) or "")
    return [
        Argument(
            one.arg,
            kind_of(one.annotation) if one.annotation else "Any",
            None if default is None else ast.unparse(default),
            told.get(one.arg, ""),
        )
        for one, default in zip(given, defaults, strict=True)
        if one.arg != "self"
    ]


def kind_of(annotation: ast.expr) -> str:
    """Return a type as text, with `|` for the unions of older files, and words for Lightning's own names.

    Example:
        >>> kind_of(ast.parse("Optional[Union[_PATH, dict[str, int]]]").body[0].value)
        'path | dict[str, int] | None'
    """
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Optional", "Union"):
        inner = annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        none = [" | None"] if ast.unparse(annotation.value) == "Optional" else []
        return " | ".join(map(kind_of, parts)) + "".join(none)
    text = ast.unparse(annotation).strip("'\"")
    return _WORDS.get(text, text)


def _told(docstring: str) -> dict[str, str]:
    """Return the first sentences of a docstring's arguments, but what they default to."""
    section = re.search(r"(?ms)^\s*Args:\n(.*?)(?=^\S|\Z)", docstring)
    found = re.findall(r"(?ms)^ {4}(\w+): (.*?)(?=^ {4}\w+: |^\s*$|\Z)", section[1] if section else "")
    told = {name: re.sub(r"^Defaults to \S+\s", "", " ".join(text.split())) for name, text in found}
    return {name: re.split(r"(?<=\.)\s", text)[0] for name, text in told.items()}


def _lightning() -> Path:
    """Return the folder of `lightning.pytorch`; to look for that as a module would import it."""
    spec = importlib.util.find_spec("lightning")
    folders = (spec.submodule_search_locations if spec else None) or [""]
    return Path(next(iter(folders)), "pytorch")


def _trainer_file() -> Path:
    return _lightning() / "trainer" / "trainer.py"


def _function(path: Path, owner: str, name: str) -> ast.FunctionDef | None:
    for node in _read(path).body if path.is_file() else []:
        if isinstance(node, ast.ClassDef) and node.name == owner:
            return next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == name), None)
    return None


@functools.cache
def _read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
