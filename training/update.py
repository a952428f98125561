"""One update of the weights: the loss of a batch, its gradients, and the optimizers' step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits (B, T, V), targets and idx (B, T): their mean loss


def autocast(device: torch.device, precision: str):
    """The context in which matmuls run in `precision`, "fp32" or "bf16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def cross_entropy(logits: Tensor, targets: Tensor, idx: Tensor | None = None) -> Tensor:
    """In nats per character, a scalar: logits (B, T, V), targets int64 (B, T)."""
    return F.cross_entropy(rearrange(logits.float(), "b t v -> (b t) v"), rearrange(targets, "b t -> (b t)"))


def compute_gradients(
    forward: Callable[[Tensor], Tensor],
    idx: Tensor,
    targets: Tensor,
    precision: str,
    micro_batch: int,
    loss_of: Loss = cross_entropy,
) -> Tensor:
    """Add the gradients of a batch's mean loss to the weights of `forward`; returns that loss, a scalar.

    idx, targets: int64 (B, T). micro_batch: how many sequences to run forward and backward at a time, to limit memory;
    the result is the same, but for what is drawn for each part (dropout, a teacher). A DistributedDataParallel
    `forward` averages gradients over its processes, once a batch.
    """
    loss = torch.zeros((), device=idx.device)
    parts = list(zip(idx.split(micro_batch), targets.split(micro_batch), strict=True))
    with autocast(idx.device, precision):  # one context for all parts, so that each weight is cast once
        for number, (x, y) in enumerate(parts, start=1):
            not_yet = number < len(parts) and hasattr(forward, "no_sync")
            with forward.no_sync() if not_yet else contextlib.nullcontext():
                part = loss_of(forward(x), y, x) * (len(x) / len(idx))
            with torch.autocast(idx.device.type, enabled=False):
                part.backward()
            loss += part.detach()
    return loss


def apply_update(optimizers: list[Optimizer], learning_rate: float, device: torch.device, precision: str) -> None:
    """Let every optimizer take a step. Matmuls of optimizers, such as Muon's, run in `precision` too."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        with autocast(device, precision):
            optimizer.step()
