"""The parsers of the commands beside LightningCLI's, and what they refuse before Lightning is imported."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn, final

from lightning_prune.known import PASSED_ON, names_of_methods


@final
class CommandParser(argparse.ArgumentParser):
    """A parser that answers a mistake with the mistake and exit code 2, not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Write the mistake, and end the program."""
        sys.stderr.write(f"error: {message}{suggestion(message)}\nFor all arguments: {self.prog} --help\n")
        raise SystemExit(2)

    def refuse_unknown(self, given: Sequence[str], others: Collection[str] = PASSED_ON) -> None:
        """Refuse options that are neither this command's nor among those of ``fit``, which it passes on.

        Args:
            given: What this parser did not know.
            others: What options of ``fit`` begin with.
        """
        own = [option.rstrip("]") for option in self.format_usage().replace("[", " ").split() if option[:2] == "--"]
        known = [*dict.fromkeys(own), *(f"--{section}" for section in others)]
        for text in given:
            name = text.partition("=")[0]
            if not text.startswith("--") or name.removeprefix("--").partition(".")[0].rstrip("+") in others:
                continue
            near = difflib.get_close_matches(name.partition(".")[0], known, 1, 0.0)[0]
            self.error(
                f"Expected arguments of `{self.prog.split()[-1]}`, or of `fit` that begin with --trainer, --model or "
                f"--data, but got {name}. Did you mean {near}?"
            )


def suggestion(message: str) -> str:
    """Return a question that names the nearest of the words that were expected, or nothing.

    Example:
        >>> suggestion("Expected `method` to be one of ['AUM', 'TDDS'], but got 'TDS'.")
        ' Did you mean `TDDS`?'
    """
    found = re.search(r"(?:one of|that the training logs, of) (.*), but got '(\w+)'", message)
    if found is None or "Did you mean" in message:
        return ""
    known = {word.lower(): word for word in re.findall(r"\w+", found[1])}
    near = difflib.get_close_matches(found[2].lower(), known, n=1)
    return f" Did you mean `{known[near[0]]}`?" if near else ""


def advise_parser() -> CommandParser:
    """Return the parser of the command's own arguments; all others are those of ``lightning-prune fit``."""
    parser = CommandParser(
        "lightning-prune advise",
        description="Train for a small share of the run, and say which method suits the data, with its yaml, or that "
        "fewer epochs of all data would do better. Any argument of `lightning-prune fit` is taken too.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, help="yaml of the training, as for `fit`")
    parser.add_argument("--save", type=float, default=0.4, help="share of the sample-steps to save (default: 0.4)")
    parser.add_argument("--probe", type=float, default=0.1, help="share of the run to probe with (default: 0.1)")
    return parser


def compare_parser() -> CommandParser:
    """Return the parser of the command's own arguments; all others are those of ``lightning-prune fit``."""
    parser = CommandParser(
        "lightning-prune compare",
        description="Run the same training with several methods, ratios and seeds, and say whether pruning hurt. Runs "
        "that have finished are kept: repeat the command to go on, or with more methods, ratios or seeds. Any argument "
        "of `lightning-prune fit` is taken too, such as --trainer.max_epochs=20.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, help="yaml of the training, as for `fit`")
    parser.add_argument(
        "--methods",
        nargs="+",
        required=True,
        metavar="METHOD",
        help="names of pruning methods (`lightning-prune methods` lists them), import paths of your own, or yaml files "
        "of `label: {class_path: ..., init_args: ...}`; a method that does not give its ratio itself is set to each of "
        "--prune_ratios, others are run as they are",
    )
    parser.add_argument("--prune_ratios", nargs="+", default=[], metavar="RATIO", help="shares of sample-steps to save")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--until_decided", action="store_true", help="add seeds until every row has a verdict")
    parser.add_argument("--max_seeds", type=int, default=20, help="most seeds then (default: 20)")
    parser.add_argument(
        "--margin",
        type=float,
        help="loss of the metric that would not matter (default: half a point of an accuracy, 1 %% of others)",
    )
    parser.add_argument("--better", choices=["higher", "lower"], help="of the metric (default: as its name says)")
    parser.add_argument(
        "--pilots",
        action="store_true",
        help="set each method to one ratio for the whole run, which pilot runs tell where what it saves depends on the "
        "losses, instead of going by what its run has saved so far",
    )
    parser.add_argument("--no_control", action="store_true", help="do not run full data for fewer epochs")
    parser.add_argument("--budget_epochs", type=int, help="epochs of each run, instead of trainer.max_epochs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default: 1)")
    parser.add_argument(
        "--launcher",
        default="local",
        help="where runs go: local (default), ray, submitit (Slurm), or the import path of an executor of "
        "concurrent.futures",
    )
    parser.add_argument("--launcher_args", default="{}", help="its arguments, as in '{num_cpus: 4, num_gpus: 1}'")
    parser.add_argument("--metric", help="logged metric to compare, as it is at the end (default: the first accuracy)")
    parser.add_argument("--output", help="folder of runs and results (default: results/NAME_OF_CONFIG)")
    parser.add_argument("--dry_run", action="store_true", help="check everything, and list the runs and their time")
    return parser


def report_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser(
        "lightning-prune report",
        description="Write a page of one run, or of several side by side: what was saved, kept and lost, and which "
        "samples are hard, forgotten or perhaps labelled wrong. The runs must have had `PruningReport` among their "
        "callbacks, and be on the same training dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="log folder of a run, which holds its prune_report.npz")
    parser.add_argument(
        "--output", default="report.html", help="file to write, .html, .md or .json (default: report.html)"
    )
    return parser


def parse_advise(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's own arguments, and those of ``fit``; a mistake in them ends the program."""
    parser = advise_parser()
    options, overrides = parser.parse_known_args(args)
    parser.refuse_unknown(overrides, (*PASSED_ON, "seed_everything"))
    for name in ("save", "probe"):
        if not 0 < getattr(options, name) < 1:
            parser.error(f"Expected `--{name}` to be a number in (0, 1), but got {getattr(options, name):g}.")
    return options, overrides


def parse_compare(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's own arguments, ratios as numbers, and those of ``fit``; a mistake ends the program."""
    parser = compare_parser()
    options, overrides = parser.parse_known_args(args)
    parser.refuse_unknown(overrides)
    for name, low in (("seeds", 1), ("first_seed", 0), ("jobs", 1), ("budget_epochs", 1), ("margin", 0)):
        value = getattr(options, name)
        if value is not None and not value >= low:
            kind = "a number" if name == "margin" else "an int"
            parser.error(f"Expected `--{name}` to be {kind} >= {low}, but got {value}.")
    options.prune_ratios = [_ratio(parser, text) for text in _split(options.prune_ratios)]
    options.methods = _split(options.methods)
    known = names_of_methods()
    for text in options.methods:
        if "." not in text and text not in known:
            parser.error(
                f"Expected each of `--methods` to be one of {', '.join(sorted(known, key=str.lower))}, the import path "
                f"of your own `PruningCallback`, or a yaml file of methods, but got {text!r}."
            )
    return options, overrides


def parse_report(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's arguments, and nothing else; a mistake ends the program."""
    return report_parser().parse_args(args), []


def _split(texts: Sequence[str]) -> list[str]:
    return [part for text in texts for part in text.split(",") if part]


def _ratio(parser: CommandParser, text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        parser.error(f"Expected `--prune_ratios` to be numbers in (0, 1), but got {text!r}.")
    return ratio
