"""The command line: LightningCLI with every pruning method known by its short class name."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_prune
from lightning_prune.analysis.trainer import CommandTrainer
from lightning_prune.core.export import check_writable
from lightning_prune.mistakes import hints
from lightning_prune.scoring.random_scores import RANDOM

_PACKAGE = Path(__file__).parent
_OTHER_COMMANDS = {
    "advise": "lightning_prune.advise",
    "compare": "lightning_prune.compare",
    "report": "lightning_prune.report.command",
}
"""Commands beside those of LightningCLI, and the module whose ``main`` they call."""
_SPELLINGS = {"find-label-issues": "find_label_issues"}
"""Commands as they are written, and the methods that LightningCLI looks for."""
_KINDS = {"float": "a number", "int": "a whole number", "str": "a text", "bool": "true or false"}
_NOISE = (
    "a class path (str)",
    "a dict with class_path entry",
    "a dict without class_path",
    "a dict with parameters accepted by",
    "Not a valid subclass",
    "<class 'NoneType'>",
    "<class 'list'>",
    "'lightning.Callback'",
    "'lightning.pytorch.Callback'",
    "list[",
)


def readable(message: str) -> str:
    """Shorten a parser's message about a union of types to the lines that name the mistake.

    Example:
        >>> print(readable('''Parser key "trainer.callbacks":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Problem with given class_path 'lightning_prune.InfoBatch':
        ...         Option 'prune_rat' is not accepted
        ...     - Expected a <class 'NoneType'>
        ...   Given value: ...'''))
        `trainer.callbacks`:
          Problem with given class_path 'lightning_prune.InfoBatch':
              Option 'prune_rat' is not accepted
    """
    head, _, rest = message.partition("Errors:\n")
    if not rest:
        return _plainly(message)
    body = re.split(r"\n *Given value", rest)[0]
    problems = [problem.strip() for problem in re.split(r"(?m)^ *- ", body) if problem.strip()]
    told = [problem for problem in problems if not any(noise in problem.splitlines()[0] for noise in _NOISE)]
    told = list(dict.fromkeys(told))  # a union of types tells the same several times
    if any(problem.startswith("Expected a <class 'float'>") for problem in told):  # or a function: a ratio's schedule
        told = [problem for problem in told if "import path string" not in problem]
    given = re.search(r"(?m)^ *Given value: (.*)", rest)
    told = [_plainly(problem, given[1] if given else None) for problem in told]
    key = next(
        (line for line in head.splitlines() if line.strip() and "Union subtypes" not in line), "The configuration"
    )
    if not told:
        told = ["Expected a class path, or a dict with `class_path` and `init_args`"]
    lines = [_plainly(key), *("  " + re.sub(r"(?m)^ +", "      ", problem) for problem in told)]
    if any("import path" in problem for problem in told):
        methods = [name for name in lightning_prune.__all__ if _is_method(name)]
        lines.append(f"  No class of that name is known. Pruning methods: {', '.join(methods)}.")
    return "\n".join(lines)


def _plainly(problem: str, given: str | None = None) -> str:
    """Return a problem with types as words, and with the value that was given.

    Example:
        >>> _plainly("Expected a <class 'int'>", "abc"), _plainly("Expected a <class 'float'>. Got value: much")
        ('Expected a whole number, but got abc', 'Expected a number, but got much')
    """
    problem = re.sub(r'^Parser key "([\w.]+)"', r"`\1`", problem)
    problem = re.sub(r"\. Got value: (.*)", r", but got \1", problem)
    if given is not None and re.fullmatch(r"Expected a <class '\w+'>", problem):
        problem += f", but got {given}"
    return re.sub(r"a <class '(\w+)'>", lambda found: _KINDS.get(found[1], f"a {found[1]}"), problem)


def _is_method(name: str) -> bool:
    thing, base = getattr(lightning_prune, name), lightning_prune.PruningCallback
    return isinstance(thing, type) and issubclass(thing, base) and thing is not base


@final
class _Parser(LightningArgumentParser):
    """A parser that answers a mistake with the mistake, not with a page of usage."""

    given: ClassVar[Sequence[str]] = ()
    """The arguments of the command line; of the class, as a parser makes others for what is nested."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        told = "\n".join([readable(message), *hints(message, self.given)])
        command = next((arg for arg in self.given[:1] if arg[:1] != "-"), "fit").replace("_", "-")
        sys.stderr.write(f"error: {told}\nFor all arguments: lightning-prune {command} --help\n")
        raise SystemExit(2)


@final
class _SaveConfig(SaveConfigCallback):
    """Saves the configuration into the run's folder; without a logger there is none, and nothing is overwritten."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.logger is not None:
            super().setup(trainer, pl_module, stage)


@final
class PruneCLI(LightningCLI):
    """LightningCLI with commands of our own; what they complain of is one readable message, with exit code 2.

    Args:
        args: Those of `LightningCLI`.
        check_only: Read the configuration of ``fit`` and build what it says, but do not train.
        kwargs: Those of `LightningCLI`.
    """

    def __init__(self, *args: Any, check_only: bool = False, **kwargs: Any) -> None:
        self.check_only = check_only
        given = kwargs.get("args")
        _Parser.given = sys.argv[1:] if given is None else given if isinstance(given, list) else []
        kwargs.setdefault("trainer_class", CommandTrainer)
        super().__init__(*args, **kwargs)

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Build the parser of the command that is given, of all where none comes first: each takes a while."""
        commands = self.subcommands()
        if add_subcommands and (given := list(_Parser.given[:1])) and given[0] in commands:
            self.__dict__["subcommands"] = lambda: {given[0]: commands[given[0]]}
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self.__dict__.pop("subcommands", None)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return LightningCLI's commands and our own, with the arguments that the configuration gives."""
        given = {"model", "datamodule"}
        return {**LightningCLI.subcommands(), "score": given, "find_label_issues": given}

    def fit(self, **kwargs: Any) -> None:
        """Train, unless this is only a check."""
        if not self.check_only:
            self.trainer.fit(**kwargs)

    def score(self, **kwargs: Any) -> None:
        """Score the training set."""
        self._run_ours("score", kwargs)

    def find_label_issues(self, **kwargs: Any) -> None:
        """Find wrong labels in the training set."""
        self._run_ours("find_label_issues", kwargs)

    def _run_ours(self, command: str, kwargs: dict[str, Any]) -> None:
        """Run a command; what our own checks refuse is the user's to mend, not a traceback."""
        try:
            getattr(self.trainer, command)(**kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            if not str(error).startswith("Expected "):
                raise
            self.parser.error(str(error))

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Use a parser with short messages that takes no abbreviations; the rest is LightningCLI's."""
        kwargs.setdefault("allow_abbrev", False)  # `--seed 3` would start a training
        kwargs.setdefault("dump_header", [f"lightning_prune=={lightning_prune.__version__}"])
        kwargs.setdefault("epilog", f"Other commands: lightning-prune {', '.join(_OTHER_COMMANDS)}; each has --help.")
        parser = _Parser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="Path to a configuration file in yaml.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; that `advise` and `compare` hand arguments on is not the user's to be warned of."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Look for the files that are named, before model and data are built."""
        given = self.config.as_dict()
        given = given.get(self.subcommand or "", given)
        try:
            _check_checkpoint(given.get("ckpt_path"))
            _check_files(given.get("trainer", {}).get("callbacks"), resumes=given.get("ckpt_path") is not None)
            if given.get("save_to"):
                _check_folder(Path(given["save_to"]))
        except OSError as error:
            self.parser.error(str(error))

    def instantiate_classes(self) -> None:
        """Build the configured objects; what an ``__init__`` refuses is the user's to mend, not a traceback."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, MisconfigurationException) as error:
            self.parser.error(_plain_cause(error))


def _check_files(entry: Any, *, resumes: bool) -> None:
    """Raise OSError if a file that one of our callbacks is to read is not there, or one that it writes cannot be.

    Args:
        entry: A callback of the configuration, or several; others than ours are left alone.
        resumes: Whether a checkpoint is named, which holds what was read of the scores.
    """
    for one in entry if isinstance(entry, list) else [entry]:
        if not isinstance(one, dict) or not str(one.get("class_path")).startswith(f"{lightning_prune.__name__}."):
            continue
        for name, value in (one.get("init_args") or {}).items():
            if isinstance(value, dict | list):
                _check_files(value, resumes=resumes)
            elif isinstance(value, str) and name in ("scores", "irreducible_losses") and not resumes:
                if value != RANDOM:  # a draw, not a file
                    _check_readable(name, Path(value))
            elif isinstance(value, str) and name == "save_to":
                _check_folder(Path(value))


def _check_checkpoint(path: Any) -> None:
    """Raise OSError if a checkpoint is named that is not there; a word such as ``last`` is Lightning's to look up."""
    if isinstance(path, str) and Path(path).suffix and ":" not in path and not Path(path).exists():
        raise FileNotFoundError(f"Expected `ckpt_path` to be a checkpoint, but there is no file '{path}'.")


def _check_readable(name: str, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file for `{name}`, but there is none at '{path}'.")


def _check_folder(path: Path) -> None:
    check_writable(path if path.suffix else path / "scores.npz", what="file of `save_to`")


def _refusal(error: BaseException) -> str | None:
    """Return the message of an error that this package raised on purpose, or None where a traceback helps more.

    That is where the user's own code raised it, or called us from ``training_step``.
    """
    frames = [
        (Path(frame.f_code.co_filename), frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    told = str(error).startswith("Expected ") or isinstance(error, OSError | NotImplementedError)
    if not told or any(name == "training_step" for _, name in frames):
        return None
    while frames and not frames[-1][0].is_relative_to(_PACKAGE) and "site-packages" in frames[-1][0].parts:
        frames.pop()  # for example NumPy, which did not find our file
    return str(error) if frames and frames[-1][0].is_relative_to(_PACKAGE) else None


def _is_of_a_checkpoint(error: BaseException) -> bool:
    """Return whether a file could not be read that LightningCLI looks into before anything is built."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return {"_parse_ckpt_path", "load"} <= names


def _plain_cause(error: BaseException) -> str:
    """Return our own message if it is in the chain of causes: jsonargparse wraps it in a dump of types."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return next((message for message in chain if message.startswith("Expected `")), chain[0])


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-prune fit|validate|test|predict|score|find-label-issues --config FILE``, or another command.

    ``--print_config`` explains every argument; ``--print_config=skip_null`` and the like are passed on.

    Args:
        args: The arguments. None: those of the command line.
    """
    given = sys.argv[1:] if args is None else list(args)
    if given and given[0] in _OTHER_COMMANDS:
        importlib.import_module(_OTHER_COMMANDS[given[0]]).main(given[1:])
        return
    sys.path.insert(0, os.getcwd())  # so that a config can name the user's own modules, as `python -m` would
    explained: list[str] | None
    explained = ["--print_config=comments" if arg == "--print_config" else arg for arg in given]
    explained[:1] = [_SPELLINGS.get(arg, arg) for arg in explained[:1]]
    if args is None:
        sys.argv[1:], explained = explained, None
    try:
        PruneCLI(args=explained, save_config_callback=_SaveConfig)
    except Exception as error:
        if _is_of_a_checkpoint(error):
            reason = str(error).split(". ")[0]
            sys.stderr.write(f"error: Expected `ckpt_path` to be a checkpoint, but it cannot be read: {reason}.\n")
            raise SystemExit(2) from error
        if (message := _refusal(error)) is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
