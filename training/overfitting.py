"""Whether a run overfits: whether it went on after it began to memorise its text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from training.state import Evaluation

RISES = 2  # in a row; one alone may be chance
DIGITS = 4  # of a loss, as the terminal shows it; losses that differ by less count as equal


def lowest_before_overfitting(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation with the lowest validation loss of a run that overfits; None for any other run.

    A run overfits if, after its lowest, the validation loss rose at two evaluations in a row while the train loss fell
    at both. It also overfits if it ends with a higher validation loss and a lower train loss than it began with.
    """
    lowest = min(reversed(evaluations), key=_val_loss)  # of equal ones, the last
    rises = 0
    for before, after in pairwise(evaluations[evaluations.index(lowest) :]):
        rises = rises + 1 if _overfits(before, after) else 0
        if rises == RISES:
            return lowest
    return lowest if _overfits(evaluations[0], evaluations[-1]) else None


def _overfits(before: Evaluation, after: Evaluation) -> bool:
    return _val_loss(after) > _val_loss(before) and after.train_loss < before.train_loss


def _val_loss(evaluation: Evaluation) -> float:
    return round(evaluation.val_loss, DIGITS)
