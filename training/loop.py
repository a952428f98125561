"""The training loop: all of it, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from data import Corpus
from training.config import TrainConfig
from training.device import autocast, sequences_at_once, synchronize
from training.evaluate import exact_loss


@dataclass(frozen=True)
class Evaluation:
    """Where a run stands. Losses in nats a character, seconds of training without its evaluations."""

    step: int
    train_loss: float
    val_loss: float
    seconds: float


def train(
    model: nn.Module,
    corpus: Corpus,
    config: TrainConfig,
    precision: str,
    steps: Iterable[int],
    *,
    compiled: bool = False,
) -> Iterator[Evaluation]:
    """Train `model` on `corpus`, both on the same device, for each of `steps`; yield an evaluation now and then.

    `steps` counts from 0, wrapped in a progress bar or not. Evaluations change nothing: a model trained with many
    of them ends with the same weights as one trained with few. compiled: train through `torch.compile`; evaluations,
    whose shapes differ, do without.
    """
    device = corpus.train.device
    forward = torch.compile(model) if compiled else model
    rows = sequences_at_once(device, config.block_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
    )
    yield evaluate(model, corpus, config, step=0, seconds=0.0)
    seconds, started = 0.0, time.perf_counter()
    model.train()

    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        idx, targets = corpus.batch(config.seed, step, config.batch_size, config.block_size)  # (B, T) each
        optimizer.zero_grad(set_to_none=True)
        for x, y in zip(idx.split(rows), targets.split(rows), strict=True):  # a batch in parts, whose gradients add up
            with autocast(device, precision):
                logits = forward(x)  # (b, T, V)
            loss = F.cross_entropy(rearrange(logits.float(), "b t v -> (b t) v"), rearrange(y, "b t -> (b t)"))
            (loss * (len(x) / len(idx))).backward()
        optimizer.step()

        done = step + 1
        if done % config.eval_interval == 0 or done == config.steps:
            synchronize(device)
            seconds += time.perf_counter() - started
            yield evaluate(model, corpus, config, done, seconds)
            started = time.perf_counter()


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of the update that follows `step` others: up over the warm-up, then level or down to zero."""
    warmup = min(config.warmup_steps, config.steps // 10)  # a short run has no time for a long one
    rise = (step + 1) / (warmup + 1)
    fall = (config.steps - step) / max(1, config.steps - warmup) if config.decay else 1.0
    return config.learning_rate * min(1.0, rise, fall)


def evaluate(model: nn.Module, corpus: Corpus, config: TrainConfig, step: int, seconds: float) -> Evaluation:
    """Both losses: of the whole validation split, and of as long a piece from the start of the train split."""
    seen = corpus.train[: len(corpus.val)]
    train_loss, val_loss = (exact_loss(model, ids, config.block_size) for ids in (seen, corpus.val))
    return Evaluation(step, train_loss, val_loss, seconds)
