"""What a process sends to others."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(TorchDispatchMode):
    """Adds up the bytes that this process sends to others; a sum or a copy is taken to go to each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls += 1
            others, rank = torch.distributed.get_world_size() - 1, torch.distributed.get_rank()
            name = func._schema.name.removeprefix("c10d::")
            if name == "alltoall_base_":  # (output, input, group, output splits, input splits, ...)
                rows = args[1].shape[0] - args[4][rank]
                self.bytes += rows * args[1][:1].numel() * args[1].element_size()
            elif name == "_allgather_base_":  # (output, input, ...)
                self.bytes += others * args[1].numel() * args[1].element_size()
            elif name == "allreduce_":  # (tensors, ...)
                self.bytes += others * sum(value.numel() * value.element_size() for value in args[0])
            else:
                raise NotImplementedError(f"Expected a collective that is known, but got {func}: say what it sends.")
        return func(*args, **(kwargs or {}))
