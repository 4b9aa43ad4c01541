"""One pass of a trained module over its training set: what scores of features need, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm  # type: ignore[import-untyped]  # what Lightning's own progress bar is made of

from lightning_prune.rng import collect_rng_state, restore_rng_state
from lightning_prune.scoring._inputs import check_matrix, check_targets

_HINT = (
    "Give the module a method `scoring_step(batch)` that returns "
    "`{'logits': (B, C), 'targets': (B,), 'features': (B, D)}`."
)


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
                f"Expected `{name}` of each sample, but the module shows only {sorted(self.given)}. Return "
                f"`{name}` from `scoring_step` as well."
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

    def to(self, device: torch.device | str) -> Features:
        """Return a copy on another device, where greedy rules may be faster."""
        return Features(**{name: values.to(device) for name, values in self.given.items()})


def collect_features(
    module: nn.Module,
    dataloader: DataLoader[Any],
    *,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Features:
    """Run a trained module once over a dataset, in the dataset's order, and keep what it shows of each sample.

    By default a batch is ``(inputs, targets, ...)``, ``module(inputs)`` returns the logits, and the features are the
    input of the :class:`~torch.nn.Linear` that runs last, caught by a forward pre-hook. A module of another kind has a
    method ``scoring_step(batch)`` that returns a dict of ``logits``, ``targets`` and ``features``, or of those that it
    has.

    The module is run in eval mode, without gradients, on its own device, and is left as it was; so are the global
    random generators. The dataset should not augment: a random view has a random score.

    Args:
        module: The trained module.
        dataloader: A loader of the dataset to be pruned. Its dataset, batch size, collate function and workers are
            used; its order is not, so it may shuffle or drop the last batch.
        dtype: How features are stored; half precision halves their memory.
        progress: Show a progress bar.

    Returns:
        The features, by sample id, on the CPU.

    Raises:
        TypeError: If ``dataloader`` is not a DataLoader, or a batch or output is of another kind.
        ValueError: If the dataset has no order or is empty, a shape is wrong, a target is no class, or no linear layer
            makes the logits.

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
    rows: dict[str, Tensor] = {}
    with evaluating(module), _LastLinear(module) as head, torch.no_grad():
        for ids, batch in batches(module, loader, "features", progress):
            shown = _show(module, batch, head, len(ids))
            for name, values in shown.items():
                if name not in rows:
                    kind = {"logits": torch.float32, "targets": torch.int64, "features": dtype}[name]
                    rows[name] = torch.empty(total, *values.shape[1:], dtype=kind)
                rows[name][ids] = values.to("cpu", rows[name].dtype)
    if {"logits", "targets"} <= set(rows):
        low, high = (int(v) for v in torch.aminmax(rows["targets"]))
        if low < 0 or high >= rows["logits"].shape[1]:
            raise ValueError(
                f"Expected `targets` within [0, {rows['logits'].shape[1]}), the columns of the logits, but got ids in "
                f"[{low}, {high}]."
            )
    return Features(**rows)


def in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same batches that visits the whole dataset in its order.

    Raises:
        TypeError: If it is not a DataLoader.
        ValueError: If its dataset has no order or is empty, or it does not form batches.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"Expected `dataloader` to be a `torch.utils.data.DataLoader`, but got {type(loader).__name__}. Of several "
            "loaders pass the one whose dataset is to be pruned."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"Expected a map-style dataset, but got the IterableDataset `{type(loader.dataset).__name__}`: its samples "
            "have no index to score. Give the dataset `__getitem__` and `__len__`."
        )
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if not isinstance(batch_size, int):
        raise ValueError("Expected a DataLoader that forms batches, but got one without a `batch_size`. Set it.")
    if len(loader.dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("Expected a dataset of at least one sample, but it is empty.")
    return DataLoader(
        loader.dataset,
        batch_size,
        shuffle=False,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for a while; restore the mode of each part, and the global random generators."""
    modes = [(part, part.training) for part in module.modules()]
    rng = collect_rng_state()
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        restore_rng_state(rng)


def batches(
    module: nn.Module, loader: DataLoader[Any], description: str, progress: bool
) -> Iterator[tuple[Tensor, Any]]:
    """Yield ids ``(B,)`` and batch, on the module's device, of a loader that :func:`in_order` made."""
    device = next((values.device for values in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    ids = torch.split(torch.arange(len(loader.dataset)), int(loader.batch_size or 1))  # type: ignore[arg-type]
    for rows, batch in zip(ids, tqdm(loader, description, disable=not progress), strict=True):
        yield rows, move_data_to_device(batch, device)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a batch ``(inputs, targets, ...)``.

    Raises:
        TypeError: If it is of another kind.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(f"Expected batches `(inputs, targets, ...)`, but got {type(batch).__name__}. {_HINT}")
    return batch[0], batch[1]


def _show(module: nn.Module, batch: Any, head: _LastLinear, rows: int) -> dict[str, Tensor]:
    """Return what the module shows of one batch, checked."""
    if callable(step := getattr(module, "scoring_step", None)):
        shown = step(batch)
        if not isinstance(shown, Mapping) or not shown or set(shown) - {"logits", "targets", "features"}:
            got = sorted(shown) if isinstance(shown, Mapping) else type(shown).__name__
            raise TypeError(
                f"Expected `scoring_step` to return a dict of logits, targets and features, but got {got}. {_HINT}"
            )
    else:
        head.clear()
        inputs, targets = split_batch(batch)
        logits = check_matrix("logits", module(inputs), rows=rows, min_columns=2)
        shown = {"logits": logits, "targets": targets, "features": head.features(logits)}
    checked = {}
    if "logits" in shown:
        checked["logits"] = check_matrix("logits", shown["logits"], rows=rows, min_columns=2)
    if "targets" in shown:
        checked["targets"] = check_targets(shown["targets"], rows=rows)
    if "features" in shown:
        checked["features"] = check_matrix("features", shown["features"], rows=rows)
    return checked


class _LastLinear:
    """Notes the input of the linear layer that ran last."""

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module).__name__
        self.layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
        self.clear()

    def clear(self) -> None:
        self.layer: nn.Linear | None = None
        self.input: Any = None

    def __enter__(self) -> _LastLinear:
        self.handles = [layer.register_forward_pre_hook(self._note) for layer in self.layers]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.clear()

    def _note(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.layer, self.input = layer, inputs[0]  # type: ignore[assignment]  # only linear layers are hooked

    def features(self, logits: Tensor) -> Tensor:
        """Return the features ``(B, D)`` of the logits just made."""
        if self.layer is None:
            raise ValueError(f"Expected an `nn.Linear` that makes the logits, but `{self.name}` ran none. {_HINT}")
        value: Tensor = self.input
        if self.layer.out_features != logits.shape[1] or value.shape[:-1] != logits.shape[:1]:
            raise ValueError(
                f"Expected the last `nn.Linear` that ran in `{self.name}` to make the logits {tuple(logits.shape)}, "
                f"but it maps {tuple(value.shape)} to {self.layer.out_features} columns. {_HINT}"
            )
        return value
