"""The exact loss: every character of a split counted once, nothing sampled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import IGNORE, consecutive_windows
from training import ranks

TOKENS_AT_ONCE = 4096  # of a forward pass: enough to keep a processor busy, few enough to stay near its caches


@torch.no_grad()
def exact_loss(model: nn.Module, ids: Tensor, block_size: int) -> float:
    """Mean loss of `model` over all of `ids` (n,) but the first, in nats a character, in fp32.

    The text is read in consecutive windows of `block_size`, so the same weights always give the same number.
    """
    was_training = model.training
    model.eval()
    inputs, targets = consecutive_windows(ids, block_size)
    rows = max(1, TOKENS_AT_ONCE // block_size)
    parts = list(zip(inputs.split(rows), targets.split(rows), strict=True))
    total = 0.0
    for idx, target in parts[ranks.rank() :: ranks.count()]:  # each rank its share
        logits = model(idx)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none")
        total += losses.cpu().double().sum().item()  # on the CPU, for MPS has no float64
    model.train(was_training)
    return ranks.total(total) / (len(ids) - 1)
