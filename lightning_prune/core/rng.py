"""Random numbers of our own: the global generators of torch, NumPy and Python are the user's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.part import Part

_AT_ONCE = 1 << 20
"""Numbers of a stream that are thrown away at a time."""


def make_generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a CPU generator that is a pure function of its arguments.

    Draws for one purpose never shift those for another, and a resumed run draws what the uninterrupted one would have.

    Args:
        seed: The run's seed.
        epoch: Epoch number, from 0.
        purpose: What the numbers are for, for example ``"select"`` or ``"order"``.

    Example:
        >>> a, b = make_generator(0, 3, "order"), make_generator(0, 3, "order")
        >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
        True
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def resolve_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return ``generator``, or a fresh CPU one seeded from the system's entropy; the global one is left alone."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return generator


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation ``(n,)``; int32 where that suffices, which is half the memory to move."""
    return torch.randperm(n, generator=generator, dtype=torch.int32 if n < 2**31 else torch.int64)


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """Return a NumPy generator seeded by a draw from ``generator``; it throws coins in a third of torch's time."""
    return np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, (), generator=generator))))


def coins(numpy_rng: np.random.Generator, part: Part) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return a part ``(len(part),)`` of ``part.total`` draws, uint16, uniform; the rest is drawn and thrown away.

    Whichever parts the draws are shared in, each is the same, and so is what the generator draws next. A draw that is
    thrown away takes about a nanosecond.
    """
    first, last, num = part.start // 4, -(-part.stop // 4), part.total // 4 + 1  # of 8 bytes

    def draw(size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return numpy_rng.integers(1 << 64, size=size, dtype=np.uint64)

    for size in _lots(first):
        draw(size)
    own = draw(last - first).view(np.uint16)[part.start - 4 * first :][: len(part)]
    for size in _lots(num - last):
        draw(size)
    return own


def uniform(generator: torch.Generator, part: Part) -> Tensor:
    """Return a part ``(len(part),)`` of ``torch.rand(part.total, generator=generator)``, float32, on the CPU."""

    def draw(size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float32)

    for size in _lots(part.start):
        draw(size)
    own = draw(len(part))
    for size in _lots(part.total - part.stop):
        draw(size)
    return own


def own_generator(generator: torch.Generator, part: Part) -> torch.Generator:
    """Return a generator for a process's own draws, which leave ``generator`` alike in all of them; alone, that one."""
    if part.world_size == 1:
        return generator
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=generator)) + part.rank)


def _lots(num: int) -> list[int]:
    return [min(_AT_ONCE, num - start) for start in range(0, num, _AT_ONCE)]


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run the user's code with the global generators seeded by us, and give them back as they were."""
    state = collect_rng_state()
    torch.manual_seed(seed)  # noqa: TID251  (restored below, as are the others)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, TID251
    try:
        yield
    finally:
        restore_rng_state(state)


def collect_rng_state() -> dict[str, Any]:
    """Return the states of the global generators as tensors and plain numbers, as checkpoints need them."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002  (the user's global generator, read only)
    name, keys, *rest = numpy_state
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(internal), gauss],  # 625 numbers, one by one, are slow to pickle
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators to what :func:`collect_rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(torch.as_tensor(internal).tolist()), gauss))  # numbers in older checkpoints
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
