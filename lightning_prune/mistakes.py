"""What helps to mend a mistake on the command line: the nearest known word, the right form, the file and its line."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence

import lightning_prune
from lightning_prune.early import lines_with, sections
from lightning_prune.known import callbacks, nearest, options_of, trainer_arguments
from lightning_prune.parser import suggestion

_OPTION = re.compile(r"(?:[Uu]nrecognized arguments: -*|accept option '|Option '|accept nested key ')([\w.]+)")
_CLASS = re.compile(r"(?:dot import path string: |given class_path ')([\w.]+)")
_ARGUMENT = re.compile(r"Expected `(\w+)`")
_KEY = re.compile(r"Parser key \"([\w.]+)\"")


def hints(message: str, args: Sequence[str]) -> list[str]:
    """Return lines that help to mend what a parser complains about.

    Args:
        message: The complaint.
        args: Arguments of the command line; the files behind ``--config`` are looked through for the mistake.
    """
    found = []
    if option := _OPTION.search(message):
        found += _about_class(option[1], args) or _about_option(option[1], whole="nrecognized" in message)
    if (name := _CLASS.search(message)) and (near := nearest(name[1].split(".")[-1], lightning_prune.__all__)):
        found.append(f"Did you mean `{near}`?")
    if told := suggestion(message):
        found.append(told.strip())
    if "No module named" in message:
        found.append(f"Modules are looked for in {sys.path[0]} and among the installed packages.")
    patterns = (_OPTION, _CLASS, _ARGUMENT, _KEY)
    words = [match[1].split(".")[-1] for pattern in patterns if (match := pattern.search(message))]
    if where := next((place for word in words for place in _places(word, args)), None):
        found.append(f"See {where}.")
    return [f"  {line}" for line in found]


def _places(word: str, args: Sequence[str]) -> Iterator[str]:
    """Yield where a word is given: on the command line, whose options win, or in its files."""
    yield from (f"`{arg}`" for arg in args if re.match(rf"--([\w.]+\.)?{word}\b", arg))
    yield from lines_with(word, args)


def _about_option(option: str, whole: bool) -> list[str]:
    """Tell of an option; one on the command line is named as a whole, one in a file by its last keys."""
    head, _, last = option.rpartition(".")
    if head in lightning_prune.__all__:
        return ["Write it as:", f"    - class_path: {head}", "      init_args:", f"        {last}: ..."]
    near = nearest(last, _of_the_commands() if whole and not head else _known_arguments())
    return [f"Did you mean `{head}{'.' if head else ''}{near}`?"] if near and near != last else []


def _about_class(option: str, args: Sequence[str]) -> list[str]:
    """Tell what the user's own class takes, one that is named as the model, the data, or an optimizer."""
    name = option.rpartition(".")[2]
    for section, entry in sections(args):
        inner = entry.get("init_args")
        in_file = name in inner if isinstance(inner, dict) else False
        owner, known = _signature(str(entry.get("class_path")))
        if known and (in_file or any(re.match(rf"--{section}\.(init_args\.)?{name}\b", arg) for arg in args)):
            near = nearest(name, known)
            return [f"{owner} takes {', '.join(known)}." + (f" Did you mean `{near}`?" if near else "")]
    return []


def _signature(path: str) -> tuple[str, list[str]]:
    """Return a class's name, and what it is constructed with; nothing where that cannot be told."""
    module, _, name = path.rpartition(".")
    try:
        return name, list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return name, []


def _known_arguments() -> list[str]:
    """Return the arguments of the Trainer and of the package's callbacks."""
    return sorted({*trainer_arguments(), *(name for names in callbacks().values() for name in names or ())})


def _of_the_commands() -> list[str]:
    """Return what options of the commands begin with."""
    commands = ("fit", "validate", "test", "predict", "score", "find-label-issues")
    return sorted({"save", "probe", *(name for command in commands for name in options_of(command))})
