"""The command ``lightning-prune``, also ``python -m lightning_prune``: what needs no Lightning is answered at once."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning_prune.early import answer
from lightning_prune.known import arguments, did_you_mean, methods

COMMANDS = {
    "fit": "train as a configuration says: --config FILE, and any argument of it",
    "advise": "train for a tenth of the run, and say which method suits the data, if any",
    "compare": "train with several methods and shares saved, and say which were worth it",
    "report": "write a page of one run, or of several side by side",
    "score": "score the training set once, for a static coreset",
    "find-label-issues": "train as a configuration says, and list the labels that are probably wrong",
    "methods": "list the pruning methods; `methods NAME`: its arguments",
    "validate": "run one evaluation epoch over the validation set",
    "test": "run one evaluation epoch over the test set",
    "predict": "run inference",
}
"""What each command does. All but ``methods`` take ``--help``."""


def main(args: Sequence[str] | None = None) -> None:
    """Answer what needs no Lightning, which takes seconds to import; hand everything else to `lightning_prune.cli`.

    Args:
        args: The arguments. None: those of the command line.
    """
    given = sys.argv[1:] if args is None else list(args)
    first = given[0] if given else "--help"
    if first == "--version":
        print(f"lightning-prune {importlib.import_module('lightning_prune').__version__}")  # noqa: T201
    elif first in ("-h", "--help", "help"):
        print(usage())  # noqa: T201
    elif first == "methods":
        print(describe_methods(given[1:]))  # noqa: T201
    elif first not in COMMANDS:
        _refuse(f"Expected a command, but got {first!r}.{did_you_mean(first, COMMANDS)}")
    else:
        answer(first, given[1:], COMMANDS[first])
        importlib.import_module("lightning.pytorch")  # now it is wanted
        importlib.reload(importlib.import_module("lightning_prune"))
        importlib.import_module("lightning_prune.cli").main(args)


def usage() -> str:
    """Return the page of help: the commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lightning-prune COMMAND [ARGUMENTS]",
            "",
            "Data pruning for PyTorch Lightning. Commands:",
            *lines,
            "",
            "  lightning-prune fit --config run.yaml --print_config   every argument, its default, its help",
            "  lightning-prune COMMAND --help                         the arguments of a command",
            "  lightning-prune --version",
        ]
    )


def describe_methods(names: Sequence[str]) -> str:
    """Return the methods, one line each; with a name, what that method does and takes."""
    known = {name: (line, node) for name, line, node in methods()}
    if not names:
        width = max(map(len, known))
        return "\n".join(f"{name:{width}}  {line}" for name, (line, _) in known.items())
    if unknown := next((name for name in names if name not in known), None):
        _refuse(f"Expected the name of a pruning method, but got {unknown!r}.{did_you_mean(unknown, list(known))}")
    return "\n\n".join(describe(known[name][1]) for name in names)


def describe(method: ast.ClassDef) -> str:
    """Return a method's constructor as it is called, and its docstring."""
    init = next(node for node in method.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    lines = [
        f"    {argument.name}: {argument.kind}" + ("," if argument.default is None else f" = {argument.default},")
        for argument in arguments(init)
    ]
    return "\n".join([f"{method.name}(", *lines, ")", "", ast.get_docstring(method) or ""])


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\nAll commands: lightning-prune --help\n")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
