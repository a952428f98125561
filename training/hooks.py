"""What a rung's LanguageModel may bring besides its forward pass. What it does not bring is the same for every rung.

    optimizers(config) -> list of optimizers    which of them trains which weights; otherwise AdamW trains all
    prepare(config, corpus)                     once, before training: to load what training needs and sampling does not
    loss(logits, targets, idx) -> scalar        what training minimises; evaluations are the cross-entropy for all
    after_update()                              after each update of the weights

`optimizers` is called in training/optimizers.py, the others here.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from data import Corpus
from training.config import TrainConfig

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def prepare(model: nn.Module, config: TrainConfig, corpus: Corpus) -> None:
    if hasattr(model, "prepare"):
        model.prepare(config, corpus)


def loss_of(model: nn.Module) -> Loss:
    return getattr(model, "loss", cross_entropy)


def after_update(model: nn.Module) -> None:
    if hasattr(model, "after_update"):
        model.after_update()


def cross_entropy(logits: Tensor, targets: Tensor, idx: Tensor | None = None) -> Tensor:
    """The mean loss in nats per character, a scalar: logits (B, T, V), targets int64 (B, T)."""
    return F.cross_entropy(rearrange(logits.float(), "b t v -> (b t) v"), rearrange(targets, "b t -> (b t)"))
