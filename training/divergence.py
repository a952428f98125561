"""A loss that is not finite stops the run: the next update would make every weight nan."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data import UserError
from training import ranks

NEVER = 2**62


class FiniteCheck:
    """Looks at the loss of every step; raises UserError, on every rank, for one that is not finite.

    On a CPU that is before the update. On CUDA the CPU would have to wait for the loss, so the step is noted on the GPU
    and read at the next evaluation.
    """

    def __init__(self, device: torch.device):
        self.first = torch.full((), NEVER, device=device) if device.type == "cuda" else None

    def see(self, step: int, loss: Tensor) -> None:
        """loss: a scalar, of the step that follows `step` others."""
        if self.first is None:
            _raise_at(NEVER if math.isfinite(loss.item()) else step)
        else:
            self.first = torch.where(loss.isfinite(), self.first, self.first.clamp(max=step))

    def check(self) -> None:
        if self.first is not None:
            _raise_at(int(self.first))


def _raise_at(step: int) -> None:
    first = ranks.all_reduce_min(step)
    if first < NEVER:
        raise not_finite(first + 1)


def not_finite(step: int) -> UserError:
    return UserError(
        f"the loss is not a finite number at step {step:,}; the last checkpoint, from before, is kept; "
        "try a smaller --learning-rate, or --precision fp32"
    )
