"""One pass of a trained module over its training set: what scores of features need, sample by sample."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, final

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_prune.core.rng import isolated_rng
from lightning_prune.scoring._inputs import check_matrix, check_targets
from lightning_prune.trainer import private
from lightning_prune.trainer.mixin import WeightedLossMixin
from lightning_prune.trainer.probe import evaluating, probe


@final
class Features:
    """What a trained module shows of each sample, row i of sample i.

    Args:
        logits: ``(n, C)``, float32.
        targets: Class ids ``(n,)``, int64.
        features: Input of the last linear layer, or another embedding, ``(n, D)``.

    Raises:
        ValueError: When something is read that was not given.

    Example:
        >>> shown = Features(logits=torch.zeros(1, 2), targets=torch.tensor([0]))
        >>> shown.probs, shown.output_grads
        (tensor([[0.5000, 0.5000]]), tensor([[-0.5000,  0.5000]]))
    """

    def __init__(
        self, *, logits: Tensor | None = None, targets: Tensor | None = None, features: Tensor | None = None
    ) -> None:
        self._given = {"logits": logits, "targets": targets, "features": features}

    @property
    def given(self) -> dict[str, Tensor]:
        """What was given, by name."""
        return {name: values for name, values in self._given.items() if values is not None}

    def _get(self, name: str) -> Tensor:
        if name not in self.given:
            raise ValueError(
                f"Expected `{name}` of each sample, but there are only {sorted(self.given)}. Pass them to "
                f"`Features({name}=...)`, or in the module's `training_step` to `self.weighted_loss(losses, "
                f"{name}=...)`."
            )
        return self.given[name]

    def __len__(self) -> int:
        return len(next(iter(self.given.values())))

    @property
    def logits(self) -> Tensor:
        """Logits ``(n, C)``."""
        return self._get("logits")

    @property
    def targets(self) -> Tensor:
        """Class ids ``(n,)``."""
        return self._get("targets")

    @property
    def features(self) -> Tensor:
        """Features ``(n, D)``."""
        return self._get("features")

    @cached_property
    def probs(self) -> Tensor:
        """Softmax of the logits ``(n, C)``."""
        return self.logits.softmax(1)

    @cached_property
    def output_grads(self) -> Tensor:
        """Gradient of the cross entropy by the logits ``(n, C)``: ``probs - onehot(targets)``."""
        return self.probs - F.one_hot(self.targets, self.logits.shape[1])

    @cached_property
    def losses(self) -> Tensor:
        """Cross entropy ``(n,)``."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")


def collect_features(
    module: nn.Module,
    dataloader: DataLoader[Any],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: bool = True,
) -> Features:
    """Run a trained module once over a dataset, in the dataset's order, and keep what it shows of each sample.

    A module with `WeightedLossMixin` shows what its ``training_step`` passes to ``weighted_loss``, which need not be
    run to its end. Of any other module a batch must be ``(inputs, targets, ...)`` and ``module(inputs)`` the logits.
    Unless passed, the features are the input of the :class:`~torch.nn.Linear` that ran last, if it made the logits.

    The module is run in eval mode, without gradients, on its own device and in its own precision, and is left as it
    was; so are the global random generators. The dataset should not augment: a random view has a random score.

    Args:
        module: The trained module.
        dataloader: A loader of the dataset to be pruned. Its dataset, batch size, collate function and workers are
            used; its order is not, so it may shuffle or drop the last batch.
        dtype: How features are stored; half precision halves their memory.
        seed: Seed of what draws, such as random transforms.
        progress: Show a progress bar.

    Returns:
        The features, by sample id, on the CPU.

    Raises:
        MisconfigurationException: If ``dataloader`` is no DataLoader that could be pruned.
        TypeError: If a batch or an output is of another kind.
        ValueError: If a shape is wrong, or a target is no class.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> dataset = TensorDataset(torch.rand(6, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> shown = collect_features(module, DataLoader(dataset, batch_size=4, shuffle=True), progress=False)
        >>> shown.logits.shape, shown.features.shape, shown.targets.tolist()
        (torch.Size([6, 2]), torch.Size([6, 4]), [0, 1, 0, 1, 0, 1])
    """
    loader = in_order(dataloader)
    total = len(loader.dataset)  # type: ignore[arg-type]
    kinds = {"logits": torch.float32, "targets": torch.int64, "features": dtype}
    rows: dict[str, Tensor] = {}
    with evaluating(module), isolated_rng(seed), _last_linear(module) as head:
        for i, (ids, batch) in enumerate(batches(module, loader, "Features", progress=progress)):
            for name, values in _show(module, batch, i, len(ids), head).items():
                if name not in rows:
                    rows[name] = torch.empty(total, *values.shape[1:], dtype=kinds[name])
                rows[name][ids.start : ids.stop] = values.to("cpu", kinds[name])
    if {"logits", "targets"} <= set(rows):
        low, high = (int(v) for v in torch.aminmax(rows["targets"]))
        if low < 0 or high >= rows["logits"].shape[1]:
            raise ValueError(
                f"Expected `targets` within [0, {rows['logits'].shape[1]}), the columns of the logits, but got ids in "
                f"[{low}, {high}]."
            )
    return Features(**rows)


def in_order(dataloader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that visits the whole dataset in its order, batched as the user's loader does.

    Raises:
        MisconfigurationException: If it is no DataLoader that could be pruned.
    """
    combined, position = private.choose_loader(dataloader, None)
    original = combined.flattened[position]
    private.check_loader(original)
    return private.subset_loader(original, list(range(len(original.dataset))))


def batches(
    module: nn.Module, loader: DataLoader[Any], description: str, *, progress: bool
) -> Iterator[tuple[range, Any]]:
    """Yield ids and batch, on the module's device, of a loader that :func:`in_order` made."""
    device = next((values.device for values in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    ids, size = range(len(loader.dataset)), int(loader.batch_size or 1)  # type: ignore[arg-type]
    for i, batch in enumerate(tqdm(loader, description, disable=not progress)):
        if isinstance(module, LightningModule):
            batch = private.to_module(module, batch)
        yield ids[i * size : (i + 1) * size], move_data_to_device(batch, device)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a batch ``(inputs, targets, ...)``.

    Raises:
        TypeError: If it is of another kind.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(
            f"Expected batches `(inputs, targets, ...)`, but got {type(batch).__name__}. Let the module inherit "
            "`WeightedLossMixin`, whose `training_step` knows its batches."
        )
    return batch[0], batch[1]


def _show(module: nn.Module, batch: Any, batch_idx: int, size: int, head: _LastLinear) -> dict[str, Tensor]:
    """Return what the module shows of one batch, checked."""
    if isinstance(module, WeightedLossMixin):
        takes_index = len(inspect.signature(type(module).training_step).parameters) > 2  # self and the batch are two
        step = probe(module, batch, *((batch_idx,) if takes_index else ()), hook=False)
        shown = {"logits": step.logits, "targets": step.targets, "features": step.features}
    else:
        inputs, targets = split_batch(batch)
        shown = {"logits": module(inputs), "targets": targets, "features": None}
    checked: dict[str, Tensor] = {}
    if shown["logits"] is not None:
        checked["logits"] = check_matrix("logits", shown["logits"], rows=size, min_columns=2)
        if shown["features"] is None:
            shown["features"] = head.features(checked["logits"])
    if shown["features"] is not None:
        checked["features"] = check_matrix("features", shown["features"], rows=size)
    if shown["targets"] is not None:
        checked["targets"] = check_targets(shown["targets"], rows=size)
    if not checked:
        raise ValueError(
            f"Expected logits of each sample, but `{type(module).__name__}` shows only losses. Write "
            "`self.weighted_loss(losses, logits=logits, targets=targets)` in `training_step`."
        )
    return checked


@final
class _LastLinear:
    """Notes the linear layer that ran last, and its input."""

    def __init__(self) -> None:
        self.noted: tuple[nn.Linear, Tensor] | None = None

    def note(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Be called before each linear layer."""
        self.noted = (layer, inputs[0]) if inputs else None  # type: ignore[assignment]  # only linear ones are hooked

    def features(self, logits: Tensor) -> Tensor | None:
        """Return the features ``(B, D)`` of the logits just made; None if no linear layer made them."""
        (layer, value), self.noted = self.noted or (None, None), None
        if layer is None or value is None or layer.out_features != logits.shape[1]:
            return None
        return value if value.shape[:-1] == logits.shape[:1] else None


@contextmanager
def _last_linear(module: nn.Module) -> Iterator[_LastLinear]:
    head = _LastLinear()
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    handles = [layer.register_forward_pre_hook(head.note) for layer in layers]
    try:
        yield head
    finally:
        for handle in handles:
            handle.remove()
