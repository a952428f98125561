"""The training loop: all of it, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from einops import rearrange
from torch.nn import functional as F

from data import Corpus
from training import ranks
from training.config import TrainConfig
from training.device import autocast, sequences_at_once, synchronize
from training.dropout import seed_dropout
from training.evaluate import exact_loss
from training.finite import LossWatch
from training.state import Evaluation, State


def train(
    state: State, corpus: Corpus, config: TrainConfig, precision: str, steps: Iterable[int]
) -> Iterator[Evaluation]:
    """Train the model of `state`, on the device that `corpus` is on, for each of `steps`; yield each evaluation.

    `steps` counts on from `state.step`, wrapped in a progress bar or not, and may end early. Evaluations change
    nothing: a model trained with many of them ends with the same weights as one trained with few. Raises UserError
    where a loss is not finite.
    """
    model, optimizers, device = state.model, state.optimizers, corpus.train.device
    rows = sequences_at_once(device, config.block_size)
    losses = LossWatch(device)
    if not state.evaluations:
        yield evaluate(state, corpus, config)
    model.train()

    for step in steps:
        started = time.perf_counter()
        seed_dropout(device, config.seed, step, ranks.rank())
        batch = corpus.batch(config.seed, step, config.batch_size, config.block_size, config.without_replacement)
        idx, targets = map(ranks.share, batch)  # (B, T)
        model.zero_grad(set_to_none=True)
        parts = list(zip(idx.split(rows), targets.split(rows), strict=True))  # their gradients add up
        for x, y in parts:
            with autocast(device, precision), ranks.exchanging(state.forward, now=x is parts[-1][0]):
                logits = state.forward(x)  # (b, T, V)
            loss = F.cross_entropy(rearrange(logits.float(), "b t v -> (b t) v"), rearrange(y, "b t -> (b t)"))
            losses.see(step, loss)
            (loss * (len(x) / len(idx))).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            optimizer.step()

        state.step = step + 1
        due = state.step % config.eval_interval == 0 or state.step == config.steps
        if due:
            synchronize(device)
            losses.check()
        state.seconds += time.perf_counter() - started
        if due:
            yield evaluate(state, corpus, config)
    losses.check()  # whoever ended the steps early will save what they left


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of the update that follows `step` others: up over the warm-up, then level or down to zero."""
    warmup = min(config.warmup_steps, config.steps // 10)  # a short run has no time for a long one
    rise = (step + 1) / (warmup + 1)
    fall = (config.steps - step) / max(1, config.steps - warmup) if config.decay else 1.0
    return config.learning_rate * min(1.0, rise, fall)


def evaluate(state: State, corpus: Corpus, config: TrainConfig) -> Evaluation:
    """Both losses: of the whole validation split, and of as long a piece from the start of the train split."""
    seen = corpus.train[: len(corpus.val)]
    train_loss, val_loss = (exact_loss(state.model, ids, config.block_size) for ids in (seen, corpus.val))
    state.evaluations.append(Evaluation(state.step, train_loss, val_loss, state.seconds))
    return state.evaluations[-1]
