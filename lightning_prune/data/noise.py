"""Label noise: the variants of the papers, which disagree under common names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_int, check_ratio
from lightning_prune.core.rng import resolve_generator

CIFAR10_TWO_WAY = (2, 9, 0, 5, 7, 3, 8, 4, 6, 1)
"""Class that a CIFAR-10 class turns into: 0 <-> 2, 4 <-> 7, 1 <-> 9, 3 <-> 5, 6 <-> 8."""
CIFAR10_ONE_WAY = (0, 1, 0, 5, 7, 3, 6, 7, 8, 1)
"""The same of the one-way variant: 9 -> 1, 2 -> 0, 3 -> 5, 5 -> 3, 4 -> 7; the others stay."""
CIFAR100_SUPERCLASSES = (
    (4, 30, 55, 72, 95),
    (1, 32, 67, 73, 91),
    (54, 62, 70, 82, 92),
    (9, 10, 16, 28, 61),
    (0, 51, 53, 57, 83),
    (22, 39, 40, 86, 87),
    (5, 20, 25, 84, 94),
    (6, 7, 14, 18, 24),
    (3, 42, 43, 88, 97),
    (12, 17, 37, 68, 76),
    (23, 33, 49, 60, 71),
    (15, 19, 21, 31, 38),
    (34, 63, 64, 66, 75),
    (26, 45, 77, 79, 99),
    (2, 11, 35, 46, 98),
    (27, 29, 44, 78, 93),
    (36, 50, 65, 74, 80),
    (47, 52, 56, 59, 96),
    (8, 13, 48, 58, 90),
    (41, 69, 81, 85, 89),
)
"""Fine classes of each CIFAR-100 superclass, ascending."""


def inject_label_noise(
    targets: Tensor, kind: str, rate: float, num_classes: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return noisy labels, and which of them differ from the clean ones.

    ``floor(rate n)`` labels are drawn where the count is exact; ``kind`` says who is drawn and what they become:

    - ``"symmetric"``: exact; uniform over the other classes (Prune4ReL).
    - ``"symmetric_bernoulli"``: each with probability ``rate``; uniform over the other classes (Moderate, TDDS).
    - ``"symmetric_all"``: exact; uniform over all classes, so fewer really change (SOP).
    - ``"symmetric_next"``: exact in every class; the next class, circular (AlignPrune, which calls it symmetric).
    - ``"pairflip"``: each with probability ``rate``; the next class, circular (co-teaching).
    - ``"asymmetric_cifar10"``: exact; two-way 0-2, 4-7, 1-9, 3-5, 6-8 (Prune4ReL; AlignPrune follows it).
    - ``"asymmetric_cifar10_one_way"``: exact in every class; 9 to 1, 2 to 0, 3 to 5, 5 to 3, 4 to 7 (SOP). About
      ``rate / 2`` of all labels change.
    - ``"asymmetric_cifar100"``: exact; uniform over the rest of the superclass (Prune4ReL).
    - ``"asymmetric_cifar100_next"``: exact; the next class of the superclass, circular (Patrini et al.).
    - ``"asymmetric_cifar100_blocks"``: two random classes of each block of five consecutive ids swap labels with
      probability ``rate`` (SOP; such blocks are not the superclasses).
    - ``"asymmetric_imagenet"``: exact; the next class, circular (Prune4ReL).

    Args:
        targets: Clean class ids ``(n,)``, int64. Keep them to audit what was kept.
        kind: One of the above.
        rate: Share of labels to change, in [0, 1], as the variant counts it.
        num_classes: C >= 2; 10 or 100 for the CIFAR variants.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Noisy labels ``(n,)`` int64 and the flip mask ``(n,)`` bool; its mean over a coreset is the noise ratio.

    Raises:
        TypeError: If ``targets`` is not an int64 tensor.
        ValueError: If it is not ``(n,)`` within [0, C), or an argument is out of range.

    Example:
        >>> noisy, flipped = inject_label_noise(torch.tensor([0, 1, 2, 2]), "symmetric_next", 0.5, 3)
        >>> sorted(noisy.tolist()), int(flipped.sum())
        ([0, 0, 1, 2], 1)
    """
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"Expected `targets` to be an int64 tensor, but got {got}.")
    check_choice("kind", kind, tuple(_KINDS))
    check_ratio("rate", rate, closed_high=True)
    check_int("num_classes", num_classes, low=2)
    if kind in _CLASSES and num_classes != _CLASSES[kind]:
        raise ValueError(f"Expected `num_classes={_CLASSES[kind]}` for {kind!r}, but got {num_classes}.")
    if targets.dim() != 1:
        raise ValueError(f"Expected `targets` of shape (n,), but got {tuple(targets.shape)}.")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise ValueError(
            f"Expected `targets` in [0, {num_classes}), by `num_classes={num_classes}`, but got class ids in "
            f"[{int(targets.min())}, {int(targets.max())}]."
        )
    noisy = _KINDS[kind](targets.cpu(), rate, num_classes, resolve_generator(generator)).to(targets.device)
    return noisy, noisy != targets


def pairflip_matrix(num_classes: int, rate: float) -> Tensor:
    """Return the transition matrix ``(C, C)``, float64, of ``"pairflip"``: row clean class, column noisy class.

    Example:
        >>> pairflip_matrix(2, 0.25).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    eye = torch.eye(num_classes, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(1, dims=1)


def next_in_superclass() -> Tensor:
    """Return, for each CIFAR-100 class, the next one of its superclass ``(100,)``, circular."""
    table = torch.empty(100, dtype=torch.int64)
    groups = torch.tensor(CIFAR100_SUPERCLASSES)
    table[groups] = groups.roll(-1, dims=1)
    return table


def _exact(targets: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(targets), generator=generator)[: int(rate * len(targets) + 1e-6)]


def _exact_per_class(targets: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    groups = [(targets == label).nonzero().squeeze(1) for label in torch.unique(targets)]
    return torch.cat([ids[_exact(ids, rate, generator)] for ids in groups]) if groups else targets


def _coins(targets: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(len(targets), generator=generator, dtype=torch.float32) < rate).nonzero().squeeze(1)


_Draw = Callable[[Tensor, float, torch.Generator], Tensor]
_Variant = Callable[[Tensor, float, int, torch.Generator], Tensor]


def _shifted(draw: _Draw, low: int) -> _Variant:
    """Return the variant that adds a random offset in [low, C), circular."""

    def variant(targets: Tensor, rate: float, num_classes: int, generator: torch.Generator) -> Tensor:
        ids, noisy = draw(targets, rate, generator), targets.clone()
        offsets = torch.randint(low, num_classes, (len(ids),), generator=generator)
        noisy[ids] = (targets[ids] + offsets) % num_classes
        return noisy

    return variant


def _mapped(draw: _Draw, table: Callable[[int], Tensor]) -> _Variant:
    """Return the variant that maps classes by ``table(num_classes)``."""

    def variant(targets: Tensor, rate: float, num_classes: int, generator: torch.Generator) -> Tensor:
        ids, noisy = draw(targets, rate, generator), targets.clone()
        noisy[ids] = table(num_classes)[targets[ids]]
        return noisy

    return variant


def _next_class(num_classes: int) -> Tensor:
    return torch.arange(1, num_classes + 1) % num_classes


def _within_superclass(targets: Tensor, rate: float, num_classes: int, generator: torch.Generator) -> Tensor:
    ids, noisy, step = _exact(targets, rate, generator), targets.clone(), next_in_superclass()
    offsets = torch.randint(1, 5, (len(ids),), generator=generator)
    for hop in range(4):
        noisy[ids[offsets > hop]] = step[noisy[ids[offsets > hop]]]
    return noisy


def _swapped_in_blocks(targets: Tensor, rate: float, num_classes: int, generator: torch.Generator) -> Tensor:
    table = torch.arange(num_classes)
    for start in range(0, num_classes, 5):
        a, b = (start + torch.randperm(5, generator=generator)[:2]).tolist()
        table[a], table[b] = b, a
    return _mapped(_coins, lambda _: table)(targets, rate, num_classes, generator)


_KINDS: dict[str, _Variant] = {
    "symmetric": _shifted(_exact, 1),
    "symmetric_bernoulli": _shifted(_coins, 1),
    "symmetric_all": _shifted(_exact, 0),
    "symmetric_next": _mapped(_exact_per_class, _next_class),
    "pairflip": _mapped(_coins, _next_class),
    "asymmetric_cifar10": _mapped(_exact, lambda _: torch.tensor(CIFAR10_TWO_WAY)),
    "asymmetric_cifar10_one_way": _mapped(_exact_per_class, lambda _: torch.tensor(CIFAR10_ONE_WAY)),
    "asymmetric_cifar100": _within_superclass,
    "asymmetric_cifar100_next": _mapped(_exact, lambda _: next_in_superclass()),
    "asymmetric_cifar100_blocks": _swapped_in_blocks,
    "asymmetric_imagenet": _mapped(_exact, _next_class),
}
_CLASSES = {kind: 10 if "cifar10_" in f"{kind}_" else 100 for kind in _KINDS if "cifar" in kind}
