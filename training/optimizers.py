"""Which optimizer trains which weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from training.config import TrainConfig


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Those of the model's method `optimizers(config)`; without that method, AdamW for all weights."""
    return model.optimizers(config) if hasattr(model, "optimizers") else [adamw(model, config)]


def adamw(model: nn.Module, config: TrainConfig, exclude: Iterable[nn.Parameter] = ()) -> Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) for all weights of `model` but `exclude`.

    Only the weights of linear layers have weight decay: biases, gains, embeddings, convolutions and scalars have none.
    Each training step sets the learning rate.
    """
    excluded = {id(parameter) for parameter in exclude}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in excluded]
    groups = [
        {"params": [p for p in rest if id(p) in linear], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if id(p) not in linear], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, config.beta2), fused=True)
