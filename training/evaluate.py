"""The exact loss: every character of a split counts once, and nothing is sampled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import IGNORE, consecutive_windows

TOKENS_AT_ONCE = 4096  # of a forward pass: enough to keep a processor busy, few enough for its caches


def exact_loss(model: nn.Module, ids: Tensor, block_size: int) -> float:
    """Mean loss of `model` over all of `ids` (n,) but the first, in nats per character, in fp32.

    The text is read in consecutive windows of `block_size`, so the same weights always give the same number.
    """
    return summed_loss(model, ids, block_size) / (len(ids) - 1)


@torch.no_grad()
def summed_loss(model: nn.Module, ids: Tensor, block_size: int, rank: int = 0, world_size: int = 1) -> float:
    """The sum of the losses, in nats; with several ranks, this rank's part of it."""
    was_training = model.training
    model.eval()
    inputs, targets = consecutive_windows(ids, block_size)
    rows = max(1, TOKENS_AT_ONCE // block_size)
    parts = list(zip(inputs.split(rows), targets.split(rows), strict=True))
    total = 0.0
    for idx, target in parts[rank::world_size]:
        logits = model(idx)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none")
        total += losses.cpu().double().sum().item()  # on the CPU, because MPS has no float64
    model.train(was_training)
    return total
