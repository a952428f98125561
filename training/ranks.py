"""Several processes that train one model, each on a shard of every batch: DistributedDataParallel under torchrun.

Each process is a rank. All hold the same weights and average their gradients, so all make the same update. A process
that torchrun did not start is rank 0 of 1, and these functions then change nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data import UserError


def launched() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """The number of this process among all; rank 0 prints, logs and saves."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """The number of this process among those of its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The ranks' process group. Inside, only rank 0 prints."""
    if not launched():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        with contextlib.ExitStack() as silence:
            if rank() > 0:
                nowhere = silence.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Inside, the first rank of each machine runs first, for example a download; then the others find it done."""
    if launched() and local_rank() > 0:
        dist.barrier()
    yield
    if launched() and local_rank() == 0:
        dist.barrier()


def check_batch_size(batch_size: int) -> None:
    """Raises UserError if a batch cannot be split into equal shards: the mean over ranks would then be wrong."""
    if batch_size % world_size():
        fitting = max(batch_size // world_size(), 1) * world_size()
        raise UserError(
            f"--batch-size {batch_size} is not divisible by {world_size()} processes; use --batch-size {fitting}, "
            "or another --nproc-per-node"
        )


def shard(batch: Tensor) -> Tensor:
    """This rank's sequences of a batch (B, T): (B / ranks, T)."""
    return batch.chunk(world_size())[rank()]


def grad_sync(model: nn.Module) -> nn.Module:
    """`model`, wrapped so that each backward pass gives the mean of all ranks' gradients."""
    return DistributedDataParallel(model, broadcast_buffers=False) if launched() else model


def all_reduce_sum(number: float) -> float:
    """The sum of every rank's `number`, in float64."""
    return _all_reduce(torch.tensor(number, dtype=torch.float64), dist.ReduceOp.SUM).item() if launched() else number


def all_reduce_min(number: int) -> int:
    """The smallest of every rank's `number`."""
    return int(_all_reduce(torch.tensor(number), dist.ReduceOp.MIN)) if launched() else number


def broadcast(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    values = [value]
    if launched():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    dist.all_reduce(tensor, operation)  # on the CPU, so that nothing waits for a GPU
    return tensor
