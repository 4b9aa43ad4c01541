"""What is answered before Lightning is imported, which takes seconds: help, and mistakes in the names of options."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import yaml

from lightning_prune.known import (
    Argument,
    callbacks,
    command_arguments,
    lightning_callbacks,
    nearest,
    options_of,
    trainer_arguments,
)
from lightning_prune.parser import parse_advise, parse_compare, parse_report

_PARSERS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "advise": parse_advise,
    "compare": parse_compare,
    "report": parse_report,
}
_FORM = """\
  model: {class_path: my_module.MyModel}
  data: {class_path: my_module.MyData}    # not where the model has loaders of its own
  trainer:
    max_epochs: 100
    callbacks:
      - class_path: InfoBatch
        init_args: {prune_ratio: 0.5}"""
"""What a configuration looks like."""
_OF_AN_OBJECT = {"class_path", "init_args", "dict_kwargs", "help"}


@final
class _MistakeError(Exception):
    """A mistake, and the word by which it is found in a file."""

    def __init__(self, message: str, word: str = "") -> None:
        super().__init__(message)
        self.word = word


def answer(command: str, args: Sequence[str], what: str) -> None:
    """Print the help that is asked for, or the mistake that is certain, and end the program; else return.

    Values, and arguments of classes that are not this package's, are left to LightningCLI, which imports them.

    Args:
        command: The command.
        args: Its arguments.
        what: What it does.

    Raises:
        SystemExit: With code 0 after help, with code 2 for a mistake.
    """
    if command in _PARSERS:
        _PARSERS[command](args)
    elif list(args) in (["--help"], ["-h"]):
        sys.stdout.write(page(command, what))
        raise SystemExit(0)
    try:
        check(command, args)
    except _MistakeError as mistake:
        where = next(lines_with(mistake.word, args), None) if mistake.word else None
        told = f"error: {mistake}" + (f"\n  See {where}." if where else "")
        sys.stderr.write(f"{told}\nFor all arguments: lightning-prune {command} --help\n")
        raise SystemExit(2) from None


def page(command: str, what: str) -> str:
    """Return the page of help of a command of LightningCLI."""
    lines = [
        f"usage: lightning-prune {command} --config FILE [ARGUMENTS]",
        "",
        f"{what[0].upper()}{what[1:]}.",
        "",
        "FILE in yaml:",
        _FORM,
        "",
        "  -c, --config FILE: configuration in yaml; with several, the later ones win",
        "  --print_config: print every argument with its value and help, and do nothing",
        "  --seed_everything: bool | int = True",
        *map(_line, command_arguments(command).values()),
        "",
        "Model, data, and an optimizer that the model does not configure itself:",
        "  --model, --data, --optimizer, --lr_scheduler CLASS: its import path",
        "  --model.NAME VALUE: an argument of it, and so on",
        "",
        "Trainer (in a file, below `trainer:`):",
        *(_line(one, "trainer.") for one in trainer_arguments().values()),
        "  --trainer.callbacks.NAME VALUE: an argument of the last callback",
        "",
        "More:",
        f"  lightning-prune {command} --config FILE --help      the same by LightningCLI, with types and choices",
        f"  lightning-prune {command} --model.help CLASS        the arguments of a class; also --data.help,",
        "                                      --trainer.callbacks.help, ...",
        "  lightning-prune methods [NAME]      the pruning methods, and their arguments",
    ]
    return "\n".join(lines) + "\n"


def _line(argument: Argument, group: str = "") -> str:
    default = " (required)" if argument.default is None else f" = {argument.default}"
    told = textwrap.fill(argument.help.replace("``", "`"), 100, initial_indent="      ", subsequent_indent="      ")
    return f"  --{group}{argument.name}: {argument.kind}{default}\n{told}".rstrip()


def check(command: str, args: Sequence[str]) -> None:
    """Look for mistakes in the names of options, on the command line and in the files that it names.

    Args:
        command: The command.
        args: Its arguments.

    Raises:
        _MistakeError: The first that is found.
    """
    fit = "fit" if command in _PARSERS else command
    entries: list[Any] = []
    contents = [_content(path) for path in _files(args)]
    for content in contents:
        if isinstance(content, dict):
            _check_file(fit, content)
            trainer = content.get("trainer")
            entries += _listed(trainer.get("callbacks")) if isinstance(trainer, dict) else []
        else:
            entries.append(None)  # what it says is not known
    for entry in entries:
        _check_callback(entry)
    _check_options(fit, args, entries, others=command in _PARSERS)
    if command != "report":
        _check_needed(command, contents, args)


def _check_options(command: str, args: Sequence[str], entries: list[Any], *, others: bool) -> None:
    """Check the command line; ``others``: the command has checked what its options begin with."""
    known = options_of(command)
    given = [text[2:].partition("=") for text in args if text.startswith("--")]
    given_callbacks = [value or None for name, _, value in given if name.rstrip("+") == "trainer.callbacks"]
    arguments = [_arguments_of(entry) for entry in [*entries, *given_callbacks]]
    for name, _, value in given:
        head, *rest = name.rstrip("+").split(".")
        if head not in known and not others and not head.startswith("print_"):
            raise _MistakeError(f"Expected an argument of `{command}`, but got --{name}.{_meant(head, known, '--')}")
        if head == "trainer" and rest and rest[0] not in {*trainer_arguments(), "help"} and trainer_arguments():
            near = _meant(rest[0], trainer_arguments(), "--trainer.")
            raise _MistakeError(f"Expected an argument of Lightning's Trainer, but got --{name}.{near}")
        if (head, *rest) == ("trainer", "callbacks"):
            _check_class(value)
        if head == "trainer" and rest[:1] == ["callbacks"] and len(rest) == 2 and arguments:
            every = {one for some in arguments for one in some or ()}
            if None not in arguments and rest[1] not in every | _OF_AN_OBJECT:
                near = _meant(rest[1], every, "--trainer.callbacks.")
                raise _MistakeError(f"Expected an argument of a callback, but got --{name}.{near}")


def _check_needed(command: str, contents: list[Any], args: Sequence[str]) -> None:
    """Refuse a command without a module, or an argument that it needs, unless it only asks for help or the like."""
    known = all(isinstance(content, dict) for content in contents)
    asks = any(text.startswith("--print_") or text.partition("=")[0].endswith("help") for text in args)
    if asks or not known:
        return
    given = {str(key).partition(".")[0] for content in contents for key in content}
    given |= {text[2:].partition("=")[0].partition(".")[0] for text in args if text.startswith("--")}
    if "model" not in given:
        where = "the files of `--config` name none" if contents else "got neither `--config` nor `--model`"
        raise _MistakeError(f"Expected a module to train, but {where}. A configuration looks like this:\n{_FORM}")
    own = {} if command in _PARSERS else command_arguments(command)
    if missing := [one for one in own.values() if one.default is None and one.name not in given]:
        told = missing[0]
        raise _MistakeError(f"Expected `--{told.name}`, which `{command}` needs, but got none. {told.help}")


def _check_file(command: str, content: dict[Any, Any]) -> None:
    known = options_of(command)
    for key, value in content.items():
        head, _, rest = str(key).partition(".")
        if head not in known:
            raise _MistakeError(
                f"Expected keys that are arguments of `{command}`, but got `{key}`.{_meant(head, known)}", head
            )
        inner = [rest.partition(".")[0]] if rest else value if head == "trainer" and isinstance(value, dict) else []
        for name in map(str, inner) if head == "trainer" and trainer_arguments() else []:
            if name.partition(".")[0].rstrip("+") not in trainer_arguments():
                near = _meant(name, trainer_arguments())
                message = f"Expected below `trainer` arguments of Lightning's Trainer, but got `{name}`.{near}"
                raise _MistakeError(message, name)


def _check_callback(entry: Any) -> None:
    """Check an entry of ``trainer.callbacks``, and what it wraps."""
    if isinstance(entry, str):
        _check_class(entry)
    if not isinstance(entry, dict):
        return
    if "class_path" not in entry:
        word = str(next(iter(entry), ""))
        form = (
            f"\n  Write it as:\n    - class_path: {word}\n      init_args:\n        ..." if word in callbacks() else ""
        )
        raise _MistakeError(f"Expected `class_path` in each of `trainer.callbacks`, but got `{word}`.{form}", word)
    _check_class(str(entry["class_path"]))
    known, given = _arguments_of(entry), entry.get("init_args")
    for name, value in given.items() if isinstance(given, dict) else ():
        if known is not None and name not in known:
            owner, near = entry["class_path"].rpartition(".")[2], _meant(str(name), known)
            raise _MistakeError(f"Expected arguments of {owner}, but got `{name}`.{near}", str(name))
        if name == "base":
            _check_callback(value)


def _check_class(path: str) -> None:
    """Refuse what is almost the name of a callback of ours or of Lightning's; others may be the user's."""
    name = path.removeprefix("lightning_prune.")
    known = {one.lower(): one for one in (*callbacks(), *lightning_callbacks())}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    if name.isidentifier() and near and known[near[0]] != name:
        raise _MistakeError(
            f"Expected the name of a callback, but got `{path}`. Did you mean `{known[near[0]]}`?", name
        )


def _arguments_of(entry: Any) -> set[str] | None:
    """Return what a callback of ours is constructed with; None: it is not ours, or does not say."""
    path = entry.get("class_path") if isinstance(entry, dict) else entry
    if not isinstance(path, str):
        return None
    return callbacks().get(path.rpartition(".")[2]) if "." not in path or path.startswith("lightning_prune.") else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _meant(word: str, known: Any, before: str = "") -> str:
    near = nearest(word, known)
    return f" Did you mean `{before}{near}`?" if near else ""


def _files(args: Sequence[str]) -> Iterator[str]:
    """Yield the configuration files among the arguments."""
    yield from (value for flag, value in itertools.pairwise(args) if flag in ("--config", "-c"))
    yield from (arg.partition("=")[2] for arg in args if arg.startswith("--config="))


def _content(path: str) -> Any:
    """Return what a file says, or None where LightningCLI is to judge it."""
    if os.path.isfile(path):
        try:
            return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            where = f"\n  See {path}, line {error.problem_mark.line + 1}." if error.problem_mark else ""
            raise _MistakeError(f"Expected '{path}' to be yaml, but it is not: {error.problem}.{where}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return None
    if Path(path).suffix in (".yaml", ".yml", ".json") and "://" not in path and "{" not in path:
        raise _MistakeError(f"Expected `--config` to name a file, but there is none at '{path}'.")
    return None


def sections(args: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the command line, and then the configuration files name as model, data and optimizer."""
    contents = [content for content in map(_content, _files(args)) if isinstance(content, dict)]
    for section in ("model", "data", "optimizer", "lr_scheduler"):
        entries: list[Any] = [value for flag, value in itertools.pairwise(args) if flag == f"--{section}"]
        entries += [arg.partition("=")[2] for arg in args if re.match(rf"--{section}(\.class_path)?=", arg)]
        entries += [content.get(section) for content in contents]
        for entry in entries:
            if isinstance(entry, str | dict):
                yield section, {"class_path": entry} if isinstance(entry, str) else entry


def lines_with(word: str, args: Sequence[str]) -> Iterator[str]:
    """Yield where a word stands in the configuration files among the arguments."""
    for file in _files(args):
        if os.path.isfile(file):
            for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
                if re.search(rf"\b{re.escape(word)}\b", line):
                    yield f"{file}, line {number}"
