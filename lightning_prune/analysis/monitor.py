"""A callback that logs what the selections of a run do."""

from __future__ import annotations

from functools import partial
from typing import Any, final

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_prune.analysis.gradients import gradient_alignment, sample_gradients
from lightning_prune.analysis.selections import class_kept_share, jaccard, noise_ratio, score_summary
from lightning_prune.core.checks import check_int
from lightning_prune.core.rng import make_generator, permutation
from lightning_prune.trainer.base import AS_IS, TrainerCallback
from lightning_prune.trainer.mixin import WeightedLossMixin
from lightning_prune.trainer.registry import ScoreRegistry
from lightning_prune.trainer.streams import is_stream

STATE_VERSION = 1
_MOST_CLASSES = 20
"""With more classes only the least and the highest kept share are logged."""

_EPOCHS_ABSENT = 5
"""Epochs in a row without a sample of a class that are warned about. Fewer happen in sound runs: a method that goes
through the data in turns, a quarter each epoch, leaves a lone sample out of three in a row; one that keeps each with
a chance of a half leaves it out of four in a row once in 16 times, of five once in 32."""
_MOST_NAMED = 10
"""Classes that a warning names."""


def dataset_column(dataset: Dataset[Any], name: str | int, num_samples: int | None = None) -> Tensor:
    """Return a value per sample ``(n,)`` that a dataset holds: an attribute, or a position in a `TensorDataset`.

    Looks through `torch.utils.data.Subset`.

    Args:
        dataset: The dataset.
        name: What holds the values.
        num_samples: How many samples there are; None: as many as the dataset's length, which a stream has not got.

    Raises:
        MisconfigurationException: If there is no such thing, or not one value per sample.
    """
    if isinstance(dataset, Subset) and not hasattr(dataset, str(name)):
        return dataset_column(dataset.dataset, name)[torch.as_tensor(dataset.indices)]
    if isinstance(name, int):
        found = dataset.tensors[name] if isinstance(dataset, TensorDataset) and name < len(dataset.tensors) else None
    else:
        found = getattr(dataset, name, None)
    if found is None:
        raise MisconfigurationException(
            f"Expected the training dataset `{type(dataset).__name__}` to hold {name!r}, one value per sample, but it "
            "does not. Give the dataset such an attribute, or name one that it has "
            "(for a `TensorDataset`, the position of the tensor)."
        )
    values = torch.as_tensor(found)
    num_samples = len(dataset) if num_samples is None else num_samples  # type: ignore[arg-type]
    if values.dim() != 1 or len(values) != num_samples:
        raise MisconfigurationException(
            f"Expected {name!r} of the training dataset to hold one value for each of its {num_samples} samples, "
            f"but got shape {tuple(values.shape)}."
        )
    return values


@final
class PruningMonitor(TrainerCallback):
    """Logs, after each epoch, what its selection was; the training is not affected.

    Under ``prune/``: ``jaccard`` (overlap with the selection of the epoch before), ``usage_min``, ``usage_mean``,
    ``usage_max`` (epochs in which a sample was selected), ``unused_fraction`` (samples never selected), ``loss_mean``
    and ``loss_p5``, ``p25``, ``p50``, ``p75``, ``p95`` (of the last recorded losses); and, if asked for,
    ``class_kept_min``, ``class_kept_max``, ``class_kept/<c>`` (share of a class that was selected; single classes if
    there are at most 20), ``noise_ratio`` (mislabelled among the selected), ``grad_cosine`` and ``grad_norm_ratio``
    (of the selection's gradient to the full one, at the weights of the epoch's end), ``grad_norm`` (of the full one).

    With ``targets``, a class of which no sample was selected in five epochs in a row is warned about, once.

    Works with every method, and without one (then every epoch is full). Methods that pick within batches select
    everything here. Values are the same on every rank.

    Args:
        targets: Where the training dataset keeps the class ids: the name of an attribute, or for a `TensorDataset` the
            position of the tensor. None: no shares per class.
        clean_targets: Likewise the true class ids of a dataset with noisy ``targets``, for ``noise_ratio``.
        flipped: Likewise a mask, True where the label is wrong, instead of ``clean_targets``.
        gradient_every_n_epochs: Compare gradients in every n-th epoch; 0: never. Needs `WeightedLossMixin`.
        gradient_samples: How many random samples to compare gradients on; two backward passes each.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or ``clean_targets`` comes without ``targets`` or with ``flipped``.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Appendices D.3, D.4, E.2; "Beyond Loss Values: Robust Dynamic Pruning via
        Loss Trajectory Alignment", supplement B.2.8.

    Example:
        >>> PruningMonitor(targets="targets", gradient_every_n_epochs=5).gradient_samples
        512
    """

    def __init__(
        self,
        targets: str | int | None = None,
        clean_targets: str | int | None = None,
        flipped: str | int | None = None,
        gradient_every_n_epochs: int = 0,
        gradient_samples: int = 512,
    ) -> None:
        super().__init__()
        check_int("gradient_every_n_epochs", gradient_every_n_epochs, low=0)
        check_int("gradient_samples", gradient_samples, low=1)
        if clean_targets is not None and (targets is None or flipped is not None):
            raise ValueError(
                "Expected `clean_targets` beside `targets` and without `flipped`, but got "
                f"targets={targets!r} and flipped={flipped!r}. The noise is where the two labels differ."
            )
        self.targets = targets
        self.clean_targets = clean_targets
        self.flipped = flipped
        self.takes_new_samples = targets is None and flipped is None  # these are looked up once
        self.gradient_every_n_epochs = gradient_every_n_epochs
        self.gradient_samples = gradient_samples
        self.history: list[dict[str, float]] = []
        """What was logged, epoch by epoch, with the epoch's number as ``"epoch"``; of this process only."""
        self._logged = -1
        self._absent: list[int] = []  # epochs in a row without a sample of each class
        self._selected: dict[int, Tensor] = {}  # by epoch: the running one's and that of the one before

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the score registry, if no method does."""
        if stage != "fit":
            return
        ScoreRegistry.attach(trainer, pl_module)
        if self.gradient_every_n_epochs and not isinstance(pl_module, WeightedLossMixin):
            name = type(pl_module).__name__
            raise MisconfigurationException(
                f"Expected a module with `WeightedLossMixin` to compare gradients, but `{name}` does not have it. "
                f"Write `class {name}(WeightedLossMixin, LightningModule)`, or pass `gradient_every_n_epochs=0`."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look the dataset's labels up."""
        registry = ScoreRegistry.of(trainer)
        self.history = []
        if not registry.takes_part:
            return
        loader: Any = registry.planned_loader.original
        _check_stream(registry, self.gradient_every_n_epochs > 0)
        look_up = partial(dataset_column, getattr(loader, "dataset", loader), num_samples=registry.num_samples)
        self._classes = None if self.targets is None else look_up(self.targets).long().cpu()
        self._warned = False
        self._flips = None if self.flipped is None else look_up(self.flipped).bool().cpu()
        if self.clean_targets is not None and self._classes is not None:
            self._flips = torch.ne(look_up(self.clean_targets).long().cpu(), self._classes)
        if registry.epoch == 0:
            self._logged, self._selected, self._absent = -1, {}, []
        if registry.session.running is not None:  # resumed in mid-epoch: this epoch's start has passed
            self._note_selection(registry)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the selection, which the registry, first in the list of callbacks, has made."""
        self._note_selection(ScoreRegistry.of(trainer))

    def _note_selection(self, registry: ScoreRegistry) -> None:
        if registry.takes_part and registry.selection is not None:
            known = {epoch: ids for epoch, ids in self._selected.items() if epoch == registry.epoch - 1}
            self._selected = {**known, registry.epoch: registry.selection.indices.cpu()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log; the registry has closed the epoch."""
        registry = ScoreRegistry.of(trainer)
        epoch = registry.epoch - 1
        if (
            epoch == self._logged or epoch not in self._selected or not registry.takes_part
        ):  # called once more after a resume, or none of ours
            return
        selected, previous = self._selected[epoch], self._selected.get(epoch - 1)
        metrics = {} if previous is None else {"jaccard": jaccard(selected, previous)}
        metrics |= _usage(registry.counts)
        metrics |= {f"loss_{name}": value for name, value in score_summary(registry.losses).items()}
        if self._classes is not None:
            metrics |= _class_shares(selected, self._classes)
            self._warn_of_absent_classes(selected, self._classes, epoch)
        if self._flips is not None:
            metrics["noise_ratio"] = noise_ratio(selected, self._flips)
        if self.gradient_every_n_epochs and (epoch + 1) % self.gradient_every_n_epochs == 0:
            metrics |= self._gradients(trainer, pl_module, registry, epoch)
        self._logged = epoch
        self.history.append({"epoch": epoch, **metrics})
        pl_module.log_dict({f"prune/{name}": value for name, value in metrics.items()}, **AS_IS)

    def _warn_of_absent_classes(self, selected: Tensor, classes: Tensor, epoch: int) -> None:
        sizes = torch.bincount(classes)
        present = torch.bincount(classes[selected], minlength=len(sizes)) > 0
        before = self._absent or [0] * len(sizes)
        self._absent = [0 if here else n + 1 for here, n in zip(present.tolist(), before, strict=True)]
        absent = [c for c, n in enumerate(self._absent) if n >= _EPOCHS_ABSENT and sizes[c] > 0]
        if any(self._absent[c] == _EPOCHS_ABSENT for c in absent) and not self._warned:
            self._warned = True
            names = ", ".join(f"{c} ({int(sizes[c])} samples)" for c in absent[:_MOST_NAMED])
            rank_zero_warn(
                f"No sample of {len(absent)} class(es) was selected in the {_EPOCHS_ABSENT} epochs up to epoch "
                f"{epoch}: {names}{', ...' if len(absent) > _MOST_NAMED else ''}. The model may forget them. "
                "Prune less, or use a method that draws from all samples."
            )

    def _gradients(
        self, trainer: Trainer, pl_module: LightningModule, registry: ScoreRegistry, epoch: int
    ) -> dict[str, float]:
        selection = registry.selection
        assert selection is not None  # noqa: S101  (narrowing)
        generator = make_generator(registry.session.seed, epoch, "monitor")
        ids = permutation(registry.num_samples, generator)[: self.gradient_samples].long()
        loader = registry.planned_loader.original
        seed = generator.initial_seed()
        pruned, full = sample_gradients(trainer, pl_module, loader, ids, selection, seed=seed)
        cosine, ratio = gradient_alignment(pruned, full)
        return {"grad_cosine": cosine, "grad_norm_ratio": ratio, "grad_norm": float(full.double().norm())}

    def state_dict(self) -> dict[str, Any]:
        """Return the last two selections, one bit per sample, by epoch."""
        selected = {}
        for epoch, ids in self._selected.items():
            mask = np.zeros(1 + int(ids.max()), dtype=bool)
            mask[ids.numpy()] = True
            selected[epoch] = torch.from_numpy(np.packbits(mask))
        return {"version": STATE_VERSION, "logged": self._logged, "selected": selected, "absent": list(self._absent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._logged = state_dict["logged"]
        self._absent = list(state_dict.get("absent", []))
        self._selected = {
            epoch: torch.from_numpy(np.flatnonzero(np.unpackbits(bits.cpu().numpy())))
            for epoch, bits in state_dict["selected"].items()
        }


def _check_stream(registry: ScoreRegistry, gradients: bool) -> None:
    """Refuse a stream of which nothing is known by sample, or single samples would have to be read."""
    if registry.num_samples == 0:
        raise MisconfigurationException(
            "Expected the number of samples of the stream, whose use PruningMonitor logs, but it is not known. Add "
            "`ScoreRegistry(num_samples=N)` to the callbacks, and write `self.weighted_loss(losses, indices=ids)`."
        )
    if gradients and is_stream(registry.planned_loader.original):
        raise MisconfigurationException(
            "Expected a map-style dataset to compare gradients, but got a stream, from which single samples cannot be "
            "read. Pass `gradient_every_n_epochs=0`."
        )


def _usage(counts: Tensor) -> dict[str, float]:
    counts = counts.cpu()
    least, most = (float(value) for value in torch.aminmax(counts))
    unused = float((counts == 0).double().mean())
    return {
        "usage_min": least,
        "usage_mean": float(counts.double().mean()),
        "usage_max": most,
        "unused_fraction": unused,
    }


def _class_shares(selected: Tensor, classes: Tensor) -> dict[str, float]:
    shares = class_kept_share(selected, classes)
    present = shares[~shares.isnan()]
    metrics = {"class_kept_min": float(present.min()), "class_kept_max": float(present.max())}
    if len(shares) <= _MOST_CLASSES:
        metrics |= {f"class_kept/{c}": share for c, share in enumerate(shares.tolist())}
    return metrics
