"""A loss that is not finite stops the run: the next update would spoil every weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data import UserError
from training import ranks

NEVER = 2**62


class LossWatch:
    """Looks at the loss of every step. `see` and `check` raise UserError, on every rank, if one was not finite.

    Before the update, but on CUDA, which works through its steps far behind the CPU and would have to be waited for: it
    notes the step itself, and is asked at the next evaluation.
    """

    def __init__(self, device: torch.device):
        self.noted = torch.full((), NEVER, device=device) if device.type == "cuda" else None

    def see(self, step: int, loss: Tensor) -> None:
        """loss: a scalar, of the step that follows `step` others."""
        if self.noted is None:
            _raise_at(NEVER if math.isfinite(loss.item()) else step)
        else:
            self.noted = torch.where(loss.detach().isfinite(), self.noted, self.noted.clamp(max=step))

    def check(self) -> None:
        if self.noted is not None:
            _raise_at(int(self.noted))


def _raise_at(step: int) -> None:
    """If `step`, on any rank, is one that there can be."""
    first = ranks.least(step)
    if first < NEVER:
        raise not_finite(first + 1)


def not_finite(step: int) -> UserError:
    return UserError(
        f"the loss is not a finite number at step {step:,}; the last checkpoint, from before, stays; "
        "try a smaller --learning-rate, or --precision fp32"
    )
