"""How a text is split, and which of its windows make a batch: that depends on the seed and the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TRAIN_SHARE = 0.9  # the first 90% is the train split, the rest the validation split
LONGEST_VAL = 1_000_000  # characters of validation split at most: evaluating 100 MB would take hours
IGNORE = -100  # a target that does not count: cross_entropy's own ignore_index


def split_ids(ids: Tensor, holdout: bool = False) -> tuple[Tensor, Tensor]:
    """The train split and the validation split of `ids` (n,), cut by position.

    holdout: the train split alone is cut again in the same way; its last tenth serves as the validation split, and the
    real validation split is not read at all.
    """
    cut = max(int(TRAIN_SHARE * len(ids)), len(ids) - LONGEST_VAL)
    if holdout:
        return split_ids(ids[:cut])
    return ids[:cut], ids[cut:]


def batch_windows(
    length: int, seed: int, step: int, batch_size: int, block_size: int, sampling: str = "random"
) -> Tensor:
    """Positions of the characters of batch number `step` in a text of `length`: int64 (B, T+1), inputs and one more.

    sampling: "random" draws each window independently. "epoch" visits all windows of the text in shuffled order, then
    again in another order.
    """
    if sampling == "epoch":
        per_epoch = len(epoch_starts(length, seed, 0, block_size))
        numbers = range(step * batch_size, (step + 1) * batch_size)  # of windows, counted from the first batch's
        starts = np.array([epoch_starts(length, seed, n // per_epoch, block_size)[n % per_epoch] for n in numbers])
    else:
        # numpy's SeedSequence mixes the pair, so neighbouring steps and seeds are independent
        starts = np.random.default_rng((seed, step)).integers(length - block_size, size=batch_size)
    return torch.from_numpy(starts)[:, None] + torch.arange(block_size + 1)  # (B, T+1)


@lru_cache(maxsize=3)  # 8 bytes a window each; a batch needs its own epoch's, perhaps the next one's, and the first's
def epoch_starts(length: int, seed: int, epoch: int, block_size: int) -> np.ndarray:
    """Where the windows of one epoch start, (N,), in shuffled order. They lie side by side.

    The first window starts at another offset in each epoch, so that the cuts between windows move; up to two windows'
    worth at the ends of the text is left out for that, another part of it in each epoch.
    """
    windows = max(1, length // block_size - 1)
    rng = np.random.default_rng((seed, epoch, windows))  # three numbers; random windows have two
    offset = rng.integers(length - windows * block_size)
    return offset + block_size * rng.permutation(windows)


def consecutive_windows(ids: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """All of `ids` (n,) cut into windows of `block_size`: inputs and targets, int64 (ceil((n-1) / T), T) each.

    Every id but the first is a target exactly once. The last window is padded with zeros whose targets are IGNORE: the
    shape stays fixed, and a causal model's earlier logits do not depend on the padding.
    """
    n = len(ids) - 1
    padding = -n % block_size
    inputs = F.pad(ids[:-1].long(), (0, padding))
    targets = F.pad(ids[1:].long(), (0, padding), value=IGNORE)
    return inputs.view(-1, block_size), targets.view(-1, block_size)
