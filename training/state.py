"""What a run in progress is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training import ranks
from training.config import TrainConfig


@dataclass(frozen=True)
class Evaluation:
    """Where a run stands. Losses in nats a character, seconds of training without its evaluations."""

    step: int
    train_loss: float
    val_loss: float
    seconds: float


@dataclass
class State:
    """All that changes while a model is trained. Batches and dropout follow from the seed and `step`.

    forward: what a training step calls: the model, wrapped for many ranks, or compiled, or both. Evaluations, whose
    shapes differ, and which every rank does alone, call the model itself.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizers: list[torch.optim.Optimizer]  # each trains weights of its own
    step: int = 0  # updates done
    seconds: float = 0.0  # spent on them
    evaluations: list[Evaluation] = field(default_factory=list)  # all so far

    @classmethod
    def at_start(cls, model: nn.Module, config: TrainConfig, *, compiled: bool = False) -> State:
        """The state before the first step: `model` as it is, on its device, and optimizers that have seen nothing.

        Those are the model's own, by a method `optimizers` that takes the settings; without one, AdamW for all of it.
        """
        forward = ranks.parallel(model)
        optimizers = model.optimizers(config) if hasattr(model, "optimizers") else [adamw(model, config)]
        return cls(model, torch.compile(forward) if compiled else forward, optimizers)


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) for all weights of `model`; each step of training sets its learning rate."""
    betas = (0.9, config.beta2)
    return torch.optim.AdamW(model.parameters(), betas=betas, weight_decay=config.weight_decay, fused=True)
