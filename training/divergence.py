"""A loss that is not finite stops the run: the next update would make every weight nan."""

from __future__ import annotations

import math

from torch import Tensor

from data import UserError
from training import ranks


def check_finite(loss: Tensor, step: int) -> None:
    """Raises UserError on every rank, if the loss of step number `step` + 1 is not finite on any rank."""
    if not ranks.all_reduce_min(int(math.isfinite(loss.item()))):
        raise not_finite(step + 1)


def not_finite(step: int) -> UserError:
    return UserError(
        f"the loss is not a finite number at step {step:,}; the checkpoint before it is kept; "
        "try a smaller --learning-rate, or --precision fp32"
    )
