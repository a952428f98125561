"""The state of a run in progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training import ranks
from training.config import TrainConfig
from training.optimizers import make_optimizers


@dataclass(frozen=True)
class Evaluation:
    """Losses after a step, in nats per character, and the seconds of training until then, without evaluations."""

    step: int
    train_loss: float
    val_loss: float
    seconds: float


@dataclass
class State:
    """All that changes while a model is trained. Batches and dropout follow from the seed and `step`.

    forward: what a training step calls: the model, wrapped for several ranks, or compiled, or both. Evaluations call
    the model itself, because their shapes differ and the ranks divide them in another way.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizers: list[torch.optim.Optimizer]  # each trains its own weights
    step: int = 0  # updates done
    seconds: float = 0.0  # spent on them
    evaluations: list[Evaluation] = field(default_factory=list)  # all so far

    @classmethod
    def at_start(cls, model: nn.Module, config: TrainConfig, *, compiled: bool = False) -> State:
        """The state before the first step: `model` as it is, on its device, and new optimizers."""
        forward = ranks.grad_sync(model)
        return cls(model, torch.compile(forward) if compiled else forward, make_optimizers(model, config))
