"""RHO-LOSS (Mindermann et al., ICML 2022): of each batch, train on what is learnable but not yet learnt."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import final

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.core.ratio import Ratio, RatioSetting, check_schedule, ratio_at
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._shared import num_picks, random_order, ratio_of_step
from lightning_prune.trainer.callback import PruningCallback

_COLUMN = "irreducible_losses"


@final
class RHOLoss(PruningCallback):
    """Train on the samples of each batch with the highest reducible loss; ``prune_ratio`` is the share left out.

    The reducible holdout loss is a sample's loss less its irreducible loss: the one that a model trained on other data
    has on it. It is high for samples that can be learnt and are not yet, and low for learnt and for mislabelled ones.
    Before each step, the losses are found by a forward pass in eval mode: use a large batch, as the paper's 32 of 320.
    Biased by design: nothing is re-weighted.

    The losses come from ``per_sample_loss(batch)``, if the module has it, else from its ``training_step``, run up to
    its call of ``weighted_loss``.

    Args:
        prune_ratio: Share of a batch left out, in [0, 1), or a schedule. At least one sample stays.
        irreducible_losses: File of the irreducible losses ``(n,)`` by sample id: what ``ScoreRegistry.save`` wrote in
            the run of a model trained on held-out data (column ``losses``), a score file, or an array in ``.npy``.
            The losses must come from a model that was not trained on the sample in question.
        seed: Seed that breaks ties. None: the global seed set by Lightning, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Let step-interval schedules end on time although epochs are shorter. Here they are not.
        log: Log ``prune/*`` once an epoch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is out of range; before the first step, if the file does not fit the dataset.

    Note:
        The published code's forward pass runs in train mode; here it is in eval mode, so that BatchNorm statistics
        count each sample once. A sample whose irreducible loss is not finite is ranked by its loss alone.

    References:
        Mindermann et al., "Prioritized Training on Points that are learnable, worth learning, and not yet learnt",
        ICML 2022, arXiv:2206.07137.
    """

    needs_mixin = False
    ranks_by_scores = False
    picks_in_batch = True
    picks_by_ids = True
    set_by_ratio = RatioSetting(most=0.9)
    takes_new_samples = False
    needs_arguments = ("it needs the losses of another model", "irreducible_losses: FILE.npz")

    def __init__(
        self,
        prune_ratio: Ratio = 0.9,
        irreducible_losses: str | PathLike[str] = "",
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        check_schedule("prune_ratio", prune_ratio)
        if not isinstance(irreducible_losses, str | PathLike) or not str(irreducible_losses):
            raise ValueError(
                "Expected `irreducible_losses` to be the path of a file with one loss per training sample, but got "
                f"{irreducible_losses!r}. Train a model on held-out data, and save its losses on the training set."
            )
        if not Path(irreducible_losses).is_file():
            raise FileNotFoundError(
                f"Expected a file of irreducible losses, but there is none at '{irreducible_losses}'."
            )
        self.prune_ratio = prune_ratio
        self.irreducible_losses = str(irreducible_losses)

    def setup_columns(self, registry: SampleTable) -> None:
        """Read the file; on resume, keep what the checkpoint holds."""
        if registry.has_column(_COLUMN):
            return
        losses = _read(Path(self.irreducible_losses), registry.num_samples)
        registry.add_column(_COLUMN)
        registry.column(_COLUMN).copy_(losses)

    def picks_now(self, registry: SampleTable, epoch: int, batch_idx: int) -> bool:
        """Return whether there is anything to leave out."""
        return ratio_at("prune_ratio", self.prune_ratio, registry.progress) > 0

    def pick(self, step: StepRecord, generator: torch.Generator) -> Tensor:
        """Take the samples with the highest reducible loss; ties are broken at random."""
        assert step.registry is not None  # noqa: S101  (narrowing: set by the registry)
        irreducible = step.registry.column(_COLUMN).index_select(0, step.indices)
        reducible = step.recorded_losses - irreducible
        k = num_picks(step, len(reducible), 1 - ratio_of_step(step, self.prune_ratio))
        return random_order(reducible, generator)[-k:].sort().values


def _read(path: Path, num_samples: int) -> Tensor:
    """Return the losses ``(n,)``, float32, of a file, with 0 where they are not finite.

    Raises:
        ValueError: If it is no such file, or of another length.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            values = content
        else:
            with content:
                values = content["losses" if "losses" in content.files else "scores"]
    except (KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"Expected '{path}' to hold an array, or `losses` or `scores` in an .npz, but it does not."
        ) from error
    if values.shape != (num_samples,) or values.dtype.kind != "f":
        raise ValueError(
            f"Expected {num_samples} irreducible losses, one for each training sample, but '{path}' has an array of "
            f"shape {values.shape} and type {values.dtype}."
        )
    losses = torch.from_numpy(values.astype(np.float32))
    if unknown := int((~losses.isfinite()).sum()):
        rank_zero_warn(
            f"{unknown} of {num_samples} irreducible losses in '{path}' are not finite: "
            "these samples are ranked by their loss alone."
        )
    return losses.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
