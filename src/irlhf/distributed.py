"""Several processes as one: the only module that knows of ranks.

Everything is the same on one process, and to the bit on 1, 2 or 4: work is dealt to a fixed number of lanes by its
position, each lane is summed in order by one process, and the lanes are added in order by all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LANES = 4


def start() -> None:
    """Joins the other processes if ``torchrun`` started this one, over gloo."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


def rank() -> int:
    return torch.distributed.get_rank() if _together() else 0


def size() -> int:
    return torch.distributed.get_world_size() if _together() else 1


def sum_in_lanes(each: Callable[[Any], Tensor], shards: Sequence[Any], length: int, dtype: torch.dtype) -> Tensor:
    """``sum(each(shard))``, a vector of ``length``: shard k is summed in lane k mod 4, and the lanes in their order."""
    lanes = min(LANES, len(shards))
    own: dict[int, Tensor] = {}
    for k, shard in enumerate(shards):
        lane = k % lanes
        if lane % size() == rank():
            found = each(shard)
            own[lane] = found if lane not in own else own[lane].add_(found)
    total: Tensor | None = None
    for lane in range(lanes):
        part = own.get(lane)
        if size() > 1:
            part = torch.empty(length, dtype=dtype) if part is None else part
            torch.distributed.broadcast(part, src=lane % size())
        assert part is not None
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
