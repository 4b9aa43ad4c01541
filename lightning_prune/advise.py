"""The command ``lightning-prune advise``: a short probe of a training, and which method it speaks for."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import final

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_prune.analysis.advice import (
    MIN_EPOCHS,
    NOISY,
    Advice,
    Findings,
    advise,
    check_reach,
    find,
    suspected,
)
from lightning_prune.cli import PruneCLI
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.parser import advise_parser, parse_advise
from lightning_prune.trainer.base import TrainerCallback
from lightning_prune.trainer.callback import PruningCallback
from lightning_prune.trainer.private import get_callbacks, set_callbacks
from lightning_prune.trainer.registry import ScoreRegistry

_NAMES = ("advise_confidence", "advise_other", "advise_class", "advise_target")


@final
class Watch(PruningCallback):
    """Trains on everything, and keeps each epoch's losses, and what the model makes of the labels.

    Attributes:
        losses: Losses ``(n,)`` of each epoch, on the CPU.
        beliefs: Values ``(4, n)`` of the last epoch: the probability of the given class, the largest of another one,
            that class, and the given one; NaN where they are not known.
    """

    record_names = _NAMES
    only_watches = True

    def __init__(self) -> None:
        super().__init__(log=False)
        self.losses: list[Tensor] = []
        self.beliefs = torch.empty(4, 0)

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Return everything."""
        return Selection.all(registry.num_samples, registry.losses.device)

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return what the model believes of each sample, where the training step passed logits and class ids."""
        losses, logits, targets = step.recorded_losses, step.logits, step.targets
        if logits is None or targets is None or logits.dim() != 2 or targets.shape != logits.shape[:1]:
            return dict.fromkeys(_NAMES, torch.full_like(losses, torch.nan, dtype=torch.float32))
        chances = logits.float().softmax(1)
        given = chances.gather(1, targets.long()[:, None])
        other, where = chances.scatter(1, targets.long()[:, None], -1.0).max(1)
        return dict(zip(_NAMES, (given.squeeze(1), other, where.float(), targets.float()), strict=True))

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:
        """Keep the epoch's values."""
        self.losses.append(registry.losses.cpu().clone())
        values = torch.stack([record.extra[name].cpu() for name in _NAMES])
        self.beliefs = values[:, values.isfinite().all(0)]

    def findings(self, max_epochs: int) -> Findings:
        """Return what was found."""
        if self.beliefs.shape[1] == 0:
            return find(self.losses, max_epochs)
        confidences, others, classes, targets = self.beliefs
        noise = suspected(confidences, others, classes.long(), targets.long())
        return find(self.losses, max_epochs, noise, targets.long())


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-prune advise --config FILE --save 0.4``.

    Args:
        args: The arguments after ``advise``. None: those of the command line.

    Raises:
        SystemExit: With code 2 for a mistake in the arguments, or in what they name.
    """
    sys.path.insert(0, os.getcwd())  # so that a config can name the user's own modules
    parser = advise_parser()
    options, overrides = parse_advise(sys.argv[2:] if args is None else args)
    arguments = ["fit", *(f"--config={path}" for path in options.config), *overrides]
    cli = PruneCLI(args=arguments, save_config_callback=None, check_only=True)
    max_epochs = cli.trainer.max_epochs or -1
    if max_epochs < 1 or cli.trainer.max_steps != -1:
        parser.error(
            f"Expected a training limited by `trainer.max_epochs`, but got max_epochs={cli.trainer.max_epochs} and "
            f"max_steps={cli.trainer.max_steps}."
        )
    epochs = round(options.probe * max_epochs)
    if epochs < MIN_EPOCHS:
        parser.error(
            f"Expected a probe of at least {MIN_EPOCHS} epochs, to compare rankings, but {options.probe:g} of "
            f"{max_epochs} epochs is {epochs}. Give `--probe {min(1.0, MIN_EPOCHS / max_epochs):.2g}` or more."
        )
    try:
        check_reach(options.save, max_epochs)
        findings = probe(cli, epochs)
        advice = advise(findings, options.save)
    except (TypeError, ValueError, MisconfigurationException) as error:
        if not str(error).startswith("Expected "):
            raise
        parser.error(str(error))
    sys.stdout.write(report(findings, advice, options.save, [*arguments, _epochs_for(options.save, max_epochs)]))


def probe(cli: PruneCLI, epochs: int) -> Findings:
    """Train what a configuration says for some epochs, with all data and without writing anything.

    Args:
        cli: The parsed configuration, whose objects are built.
        epochs: Epochs of the probe.
    """
    trainer: Trainer = cli.trainer
    max_epochs = int(trainer.max_epochs or 0)
    watch = Watch()
    callbacks: list[Callback] = [watch, *filter(_takes_part, get_callbacks(trainer))]
    for registry in (callback for callback in callbacks if isinstance(callback, ScoreRegistry)):
        registry.save_to = None
    set_callbacks(trainer, callbacks)
    trainer.loggers = [DummyLogger()] if trainer.loggers else []
    trainer.fit_loop.max_epochs = epochs
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return watch.findings(max_epochs)


def _takes_part(callback: Callback) -> bool:
    """Return whether a callback is part of the training; others prune, end it, or write what they found."""
    if isinstance(callback, TrainerCallback):
        return isinstance(callback, ScoreRegistry)
    return not isinstance(callback, Checkpoint | EarlyStopping)


def _epochs_for(save: float, max_epochs: int) -> str:
    """Return the argument of ``fit`` with which a run of all data costs what a pruned one does."""
    return f"--trainer.max_epochs={max(1, round((1 - save) * max_epochs))}"


def report(findings: Findings, advice: Advice, save: float, control: Sequence[str]) -> str:
    """Return what to print.

    Args:
        findings: What the probe found.
        advice: What to do.
        save: Share of the sample-steps to save.
        control: Arguments of the command line that train all data for as many steps, in fewer epochs.
    """
    unknown = "not known: pass `logits` and `targets` to `weighted_loss`"
    noise = unknown if findings.noise is None else f"{findings.noise:.1%} ({NOISY:.0%} or more: noisy)"
    imbalance = unknown if findings.imbalance is None else f"{findings.imbalance:.1f} : 1"
    lines = [
        f"Probe: {findings.probe_epochs} of {findings.max_epochs} epochs, all data.",
        f"  learnt samples              {findings.easy:.1%}",
        f"  samples below the mean loss {findings.below_mean:.1%}",
        f"  ranking, epoch to epoch     {findings.stability:.2f} (Spearman)",
        f"  suspected wrong labels      {noise}",
        f"  largest : smallest class    {imbalance}",
        "Most that can be saved in the full run:",
        *(f"  {name:<27} {share:.1%}" for name, share in advice.reaches.items()),
        "",
    ]
    epochs = int(control[-1].partition("=")[2])
    if advice.callback is None:
        lines += ["Do not prune: train all data for fewer epochs.", *(f"- {reason}" for reason in advice.reasons), ""]
        text = yaml.safe_dump({"trainer": {"max_epochs": epochs}}, sort_keys=False)
    else:
        base = advice.callback["init_args"]["base"]["class_path"]
        lines += [
            f"Advice: {base}, to save {save:.0%}.",
            *(f"- {reason}" for reason in advice.reasons),
            f"- All data for {epochs} of the {findings.max_epochs} epochs cost as much, and in short trainings do as "
            "well as most methods. Compare with that:",
            f"  lightning-prune {shlex.join(control)}",
            "",
        ]
        text = yaml.safe_dump({"trainer": {"callbacks": [advice.callback]}}, sort_keys=False)
    return "\n".join([*lines, text])
