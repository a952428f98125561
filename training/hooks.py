"""Methods that a rung's LanguageModel may have besides its forward pass. Each has a default.

    optimizers(config) -> list of optimizers    each with the weights that it trains; default: AdamW for all
    prepare(config, corpus)                     after it is built: load what training needs and sampling does not
    loss(logits, targets, idx) -> scalar        what training minimises, for each micro-batch; evaluations are the
                                                cross-entropy for all
    after_update()                              after each update of the weights

`optimizers` is called in training/optimizers.py, the others here.
"""

from __future__ import annotations

from torch import nn

from data import Corpus
from training.config import TrainConfig
from training.update import Loss, cross_entropy


def prepare(model: nn.Module, config: TrainConfig, corpus: Corpus) -> None:
    if hasattr(model, "prepare"):
        model.prepare(config, corpus)


def loss_of(model: nn.Module) -> Loss:
    return getattr(model, "loss", cross_entropy)


def after_update(model: nn.Module) -> None:
    if hasattr(model, "after_update"):
        model.after_update()
