"""Dropout with random numbers that are cheap on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 256  # values of the random byte that decides on each element


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al., 2014), except that on a CPU `p` is rounded to a multiple of 1/256.

    torch draws a number for each element, which takes a seventh of rung 8's step on a CPU. Here one draw of 64 bits
    decides on eight elements, a byte each. The rest is the same: an element is dropped with probability p, or else
    divided by 1 - p, so that the mean does not change.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = min(round(self.p * LEVELS), LEVELS - 1)  # of the 256 values of a byte
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        if not dropped:
            return x
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        bytes_ = draws.view(torch.uint8)[: x.numel()].view(x.shape)
        return x * (bytes_ >= dropped).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


def seed_dropout(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Make what a step drops depend only on these numbers, so that a resumed run drops the same elements.

    torch.manual_seed would do the same on every device, but takes a quarter of the bigram's step.
    """
    mixed = int(np.random.SeedSequence((seed, step), spawn_key=(rank,)).generate_state(1, np.uint64)[0])
    generator = torch.default_generator if device.type == "cpu" else getattr(torch, device.type)
    generator.manual_seed(mixed)
