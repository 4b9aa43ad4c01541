"""What helps to mend a mistake on the command line: the nearest known word, the right form, the file and its line."""

from __future__ import annotations

import difflib
import inspect
import itertools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

import lightning_prune
from lightning_prune.parser import suggestion

_OPTION = re.compile(r"(?:[Uu]nrecognized arguments: -*|accept option '|Option '|accept nested key ')([\w.]+)")
_CLASS = re.compile(r"(?:dot import path string: |given class_path ')([\w.]+)")
_ARGUMENT = re.compile(r"Expected `(\w+)`")
_OF_THE_COMMAND = ("config", "seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler", "ckpt_path",
                   "weights_only", "print_config", "verbose", "method", "method_args", "save", "save_to", "table",
                   "overwrite", "prune_ratio", "output", "top", "probe")  # fmt: skip


def hints(message: str, args: Sequence[str]) -> list[str]:
    """Return lines that help to mend what a parser complains about.

    Args:
        message: The complaint.
        args: Arguments of the command line; the files behind ``--config`` are looked through for the mistake.
    """
    found = []
    if option := _OPTION.search(message):
        found += _about_option(option[1], whole="nrecognized" in message)
    if (name := _CLASS.search(message)) and (near := _nearest(name[1].split(".")[-1], lightning_prune.__all__)):
        found.append(f"Did you mean `{near}`?")
    if told := suggestion(message):
        found.append(told.strip())
    if "No module named" in message:
        found.append(f"Modules are looked for in {sys.path[0]} and among the installed packages.")
    words = [match[1].split(".")[-1] for pattern in (_OPTION, _CLASS, _ARGUMENT) if (match := pattern.search(message))]
    if where := next((line for word in words for line in _lines_with(word, args)), None):
        found.append(f"See {where}.")
    return [f"  {line}" for line in found]


def _about_option(option: str, whole: bool) -> list[str]:
    """Tell of an option; one on the command line is named as a whole, one in a file by its last keys."""
    head, _, last = option.rpartition(".")
    if head in lightning_prune.__all__:
        return ["Write it as:", f"    - class_path: {head}", "      init_args:", f"        {last}: ..."]
    near = _nearest(last, _OF_THE_COMMAND if whole and not head else _known_arguments())
    return [f"Did you mean `{head}{'.' if head else ''}{near}`?"] if near and near != last else []


def _known_arguments() -> list[str]:
    """Return the arguments of the Trainer and of what this package exports."""
    things = [Trainer, *(thing for thing in vars(lightning_prune).values() if isinstance(thing, type))]
    return sorted({name for thing in things for name in inspect.signature(thing).parameters})


def _nearest(word: str, known: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in known}
    begins = [name for name in by_lower if name.startswith(word.lower())]
    near = begins or difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def _lines_with(word: str, args: Sequence[str]) -> list[str]:
    """Return where a word stands in the configuration files among the arguments."""
    flags = ("--config", "-c")
    files = [value for flag, value in itertools.pairwise(args) if flag in flags]
    files += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    return [
        f"{file}, line {number}"
        for file in files
        if os.path.isfile(file)
        for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1)
        if re.search(rf"\b{re.escape(word)}\b", line)
    ]
