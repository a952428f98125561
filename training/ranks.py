"""Many processes that train one model, each a part of every batch: torch's DistributedDataParallel under torchrun.

Each process is a rank. All hold the same weights, take their share of the same batch, and average their gradients, so
that every one of them makes the same update. In a process that torchrun did not start, rank 0 of 1, nothing here does
anything.
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


def count() -> int:
    """How many ranks there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """The number of this process among all: 0 prints, logs and saves."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """The number of this process among those of its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The ranks find one another, and part at the end. Those other than 0 keep silent in between."""
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
def one_first() -> Iterator[None]:
    """The first rank of each machine does what is inside, and then the others, who find it done: a download, say."""
    if local_rank() > 0:
        least(0)  # all ranks have to arrive at this before any goes on
    yield
    if launched() and local_rank() == 0:
        least(0)


def check_batch_size(batch_size: int) -> None:
    """Raises UserError where the ranks cannot have equal shares of a batch, whose means would weigh alike."""
    if batch_size % count():
        fitting = max(batch_size // count(), 1) * count()
        raise UserError(
            f"--batch-size {batch_size} does not divide among {count()} processes; use --batch-size {fitting}, "
            "or another --nproc-per-node"
        )


def share(batch: Tensor) -> Tensor:
    """This rank's sequences of a batch (B, T): (B / ranks, T)."""
    return batch.chunk(count())[rank()]


def parallel(model: nn.Module) -> nn.Module:
    """`model`, such that every backward pass through it leaves the mean of all ranks' gradients."""
    return DistributedDataParallel(model) if launched() else model


def exchanging(forward, now: bool):
    """The context of a forward pass after whose backward pass gradients are averaged, or `now` being false, not yet."""
    return contextlib.nullcontext() if now or not launched() else forward.no_sync()


def total(number: float) -> float:
    """The sum of every rank's `number`, in float64."""
    return _reduced(torch.tensor(number, dtype=torch.float64), dist.ReduceOp.SUM).item() if launched() else number


def least(number: int) -> int:
    """The smallest of every rank's `number`."""
    return int(_reduced(torch.tensor(number), dist.ReduceOp.MIN)) if launched() else number


def same(value: Any) -> Any:
    """Rank 0's `value`, for all: of what each would find a little different, such as a measured time."""
    values = [value]
    if launched():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def _reduced(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    dist.all_reduce(tensor, operation)  # on the CPU, where no GPU has to be waited for
    return tensor
