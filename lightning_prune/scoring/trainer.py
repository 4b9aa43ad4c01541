"""A Trainer that scores: what ``lightning-prune score`` runs."""

from __future__ import annotations

import pickle
import sys
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import Dataset

from lightning_prune.core.checks import check_choice, check_int, check_ratio
from lightning_prune.core.export import check_new, check_table_path
from lightning_prune.core.names import sample_names
from lightning_prune.core.rng import make_generator
from lightning_prune.scoring.features.collect import in_order
from lightning_prune.scoring.features.feature_scores import (
    FEATURE_METHODS,
    FINISHED,
    MEAN_OF_STATES,
    ONE_VISIT,
    check_parameters,
    score_module,
    try_parameters,
    uses_validation,
)
from lightning_prune.scoring.random_scores import RANDOM_CORESET, random_scores
from lightning_prune.scoring.recorder import TRACKERS, ScoreRecorder
from lightning_prune.scoring.score_file import ScoreFile, check_path, load_scores
from lightning_prune.scoring.score_table import SUFFIXES, save_score_table
from lightning_prune.scoring.summary import summarize
from lightning_prune.trainer.callback import PruningCallback
from lightning_prune.trainer.private import get_callbacks, set_callbacks

_RANDOM = "Random"


class ScoringTrainer(Trainer, ABC):
    """Base of the command line's Trainer: Lightning's, which can also score a training set."""

    def score(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        save_to: str,
        method: str = "TDDS",
        method_args: dict[str, Any] | None = None,
        prune_ratio: float = 0.3,
        ckpt_path: str | None = None,
        checkpoints: list[str] | None = None,
        table: str | None = None,
        overwrite: bool = False,
    ) -> ScoreFile | None:
        """Score the training set, write the score file and print a summary.

        A pruning callback is left out: scores need all the data. Where the run trains, and the module passes logits and
        class ids, labels are looked at on the way: the summary says how many of those kept are suspected to be wrong.

        Args:
            model: The module.
            datamodule: The data. None: the module has loaders of its own.
            save_to: Score file to write, or the folder for one named after the method.
            method: What to score by: AUM, DUAL, DynUnc, EL2N, Forgetting, GraNd or TDDS are recorded while the model
                trains. ContextualDiversity, CRAIG, DeepFool, DP, ELFS, Entropy, GLISTER, Herding, Influence, KCenter,
                LeastConfidence, Margin, Moderate, MoSo, Prune4ReL, SmallLoss and SSP take one pass of the trained
                model, in eval mode over the training loader. Random, the baseline, takes neither.
            method_args: Further arguments of the method, such as ``{"window": 5}`` of TDDS. With ``{"kind": "loss"}``
                Influence goes by the loss of the validation set, the first if there are several; without one, by that
                of the training set.
            prune_ratio: Least share that is going to be pruned, for the methods that choose samples one after another.
            ckpt_path: Checkpoint of the trained model, which is scored in one pass without training; AUM, DUAL,
                DynUnc, Forgetting and TDDS need training and resume it from there.
            checkpoints: Instead of ``ckpt_path``: several of them, of one training or of several. Each is scored in one
                pass, and the scores are the mean over them: EL2N and GraNd over ten short trainings, as their paper
                has it; MoSo over the states of one, each times its learning rate. None: none.
            table: Table of the scores to write beside the file, the samples that are kept first at its top: ``.csv`` or
                ``.parquet`` (extra ``export``). None: none.
            overwrite: Whether a file that is there already is replaced. False: it is refused, before the training.

        Returns:
            The scores; None in a ``fast_dev_run``, which writes nothing, and on ranks other than the first.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of range, or the method cannot score this model.
            OSError: If a file cannot be written, or is there already; before the training.
        """
        check_choice("method", method, tuple(sorted({*TRACKERS, *FEATURE_METHODS, _RANDOM})))
        parameters = dict(method_args or {})
        check_parameters(method, parameters)
        check_ratio("prune_ratio", prune_ratio)
        path = check_path(save_to)
        path = path if path.suffix else path / f"{method.lower()}.npz"
        is_trial = getattr(self, "fast_dev_run", False)
        table_path = None if table is None else check_table_path(table, SUFFIXES)
        if self.is_global_zero and not is_trial:
            check_new(path, "save_to", overwrite=overwrite, what="scores")
            if table_path is not None:
                check_new(table_path, "table", overwrite=overwrite, what="table of scores")
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            raise ValueError(f"Expected `ckpt_path` to be a checkpoint, but there is no file '{ckpt_path}'.")
        if method == _RANDOM or checkpoints is not None:
            file, dataset = _score_without_fit(self, method, model, datamodule, ckpt_path, checkpoints, parameters)
            return self._write(file, path, table_path, dataset) if self.is_global_zero and not is_trial else None
        one_pass = method in (*FEATURE_METHODS, *FINISHED) or (method in ONE_VISIT and ckpt_path is not None)
        if one_pass:
            try_parameters(method, parameters)
        recorder = ScoreRecorder(TRACKERS[method](**parameters), path) if not one_pass else None
        callbacks = get_callbacks(self)
        scoring = [callback for callback in callbacks if not isinstance(callback, PruningCallback)]
        set_callbacks(self, scoring if recorder is None else [recorder, *scoring])
        doubts = None
        try:
            if recorder is not None or ckpt_path is None:
                with self.watching_labels() as look:
                    self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
                    doubts = look()
            else:
                load(model, datamodule, ckpt_path)
        finally:
            set_callbacks(self, callbacks)
        interrupted = recorder is not None and not recorder.paths
        if interrupted or not self.is_global_zero or is_trial:
            return None
        if recorder is None:
            model.to(self.strategy.root_device)  # a fit leaves it on the CPU
            file, dataset = _score_once(method, model, datamodule, prune_ratio=prune_ratio, **parameters)
        else:
            file, dataset = load_scores(path, allow_missing=True), recorder.dataset
        if doubts is not None and len(doubts) == len(file.scores):
            file.columns["label_issue"] = doubts
        return self._write(file, path, table_path, dataset)

    def _write(self, file: ScoreFile, path: Path, table_path: Path | None, dataset: Any) -> ScoreFile:
        """Write the score file, and the table if there is to be one, and print the summary."""
        file.save(path)
        written = [str(path)]
        if table_path is not None:
            written.append(str(save_score_table(file, table_path, sample_names(dataset))))
        sys.stdout.write(f"\n{summarize(file)}\nWritten to {' and '.join(written)}\n")
        return file

    @contextmanager
    def watching_labels(self) -> Iterator[Callable[[], Tensor | None]]:
        """Have labels looked at during a fit within the block.

        Yields:
            A function that returns how suspect the label of each sample is, ``(n,)`` in [0, 1], or None: not known.
        """
        yield lambda: None


def _score_without_fit(
    trainer: Trainer,
    method: str,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None,
    checkpoints: list[str] | None,
    parameters: dict[str, Any],
) -> tuple[ScoreFile, Dataset[Any]]:
    """Return scores that no model is trained for, and the training set."""
    if checkpoints is None:
        return _score_at_random(model, datamodule, **parameters)
    if ckpt_path is not None:
        raise ValueError(f"Expected `checkpoints` or `ckpt_path`, but got both: {checkpoints} and '{ckpt_path}'.")
    return score_checkpoints(trainer, method, model, datamodule, checkpoints, parameters)


def score_checkpoints(
    trainer: Trainer,
    method: str,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    checkpoints: list[str],
    parameters: dict[str, Any],
) -> tuple[ScoreFile, Dataset[Any]]:
    """Return the mean of the scores of several checkpoints, and the training set; MoSo's are times the learning rate.

    Raises:
        ValueError: If the method's scores have no mean, or a checkpoint is none of this module, or of MoSo has no
            optimizer.
    """
    check_choice("method", method, MEAN_OF_STATES)
    if not checkpoints:
        raise ValueError("Expected `checkpoints` to name at least one, but got none.")
    try_parameters(method, parameters)
    if missing := [path for path in checkpoints if not Path(path).is_file()]:
        raise ValueError(f"Expected `checkpoints` to be files, but there is no file '{missing[0]}'.")
    total: Tensor | float = 0.0
    for path in checkpoints:
        load(model, datamodule, path)
        model.to(trainer.strategy.root_device)
        file, dataset = _score_once(method, model, datamodule, **parameters)
        total = total + file.scores.double() * (_learning_rate(path) if method == "MoSo" else 1.0)
    file.meta["parameters"]["checkpoints"] = [str(path) for path in checkpoints]
    return replace(file, scores=(torch.as_tensor(total) / len(checkpoints)).float()), dataset


def _score_once(
    method: str, model: LightningModule, datamodule: LightningDataModule | None, **arguments: Any
) -> tuple[ScoreFile, Dataset[Any]]:
    """Return scores by one pass over the training set, and over the validation set if they go by it; and the former."""
    source = datamodule or model
    loader, held_out = source.train_dataloader(), None
    if uses_validation(method, arguments) and is_overridden("val_dataloader", source):
        found = source.val_dataloader()
        held_out = (found[0] if found else None) if isinstance(found, (list, tuple)) else found
    return score_module(method, model, loader, val_dataloader=held_out, **arguments), loader.dataset


def _learning_rate(path: str) -> float:
    """Return the learning rate of a checkpoint's first optimizer."""
    states = torch.load(path, map_location="cpu", weights_only=True).get("optimizer_states") or []
    if not states:
        raise ValueError(
            f"Expected checkpoints with their optimizer, for its learning rate, but '{path}' has none. Save them with "
            "`ModelCheckpoint(save_weights_only=False)`."
        )
    return float(states[0]["param_groups"][0]["lr"])


def _score_at_random(
    model: LightningModule, datamodule: LightningDataModule | None, seed: int = 0
) -> tuple[ScoreFile, Dataset[Any]]:
    """Return a random order of the training set, which is only counted, and the training set."""
    check_int("seed", seed, low=0)
    set_up(model, datamodule)
    dataset = in_order((datamodule or model).train_dataloader()).dataset
    scores = random_scores(len(dataset), generator=make_generator(seed, 0, RANDOM_CORESET))  # type: ignore[arg-type]
    return ScoreFile.make(scores, method=_RANDOM, keep="high", parameters={"seed": seed}, high="nothing"), dataset


def set_up(model: LightningModule, datamodule: LightningDataModule | None) -> None:
    """Set up data and module as a fit does."""
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
    model.setup("fit")
    model.configure_model()


def load(model: LightningModule, datamodule: LightningDataModule | None, ckpt_path: str) -> None:
    """Set up data and module as a fit does, and load the weights of a checkpoint.

    Raises:
        ValueError: If it is not a checkpoint of this module.
    """
    set_up(model, datamodule)
    try:
        weights = torch.load(ckpt_path, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"Expected `ckpt_path` to be a checkpoint of `{type(model).__name__}`, but '{ckpt_path}' is not one: "
            f"{reason}"
        ) from error
