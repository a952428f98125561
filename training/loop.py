"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from torch import Tensor

from data import Corpus
from training import ranks
from training.config import TrainConfig
from training.device import micro_batch, synchronize
from training.divergence import check_finite
from training.dropout import seed_dropout
from training.evaluate import summed_loss
from training.hooks import after_update, loss_of
from training.schedule import learning_rate
from training.state import Evaluation, State
from training.update import apply_update, compute_gradients

TRAIN_PIECE = 4  # the train loss is measured on a piece a quarter as long as the validation split


def train(
    state: State, corpus: Corpus, config: TrainConfig, precision: str, steps: Iterable[int]
) -> Iterator[Evaluation]:
    """Train the model of `state`, on the device that `corpus` is on, for each of `steps`; yield each evaluation.

    `steps` counts on from `state.step` and may end early. Evaluations do not change the training: the final weights are
    the same, however often the model is evaluated. Raises UserError if a loss is not finite.
    """
    model, device = state.model, corpus.train.device
    loss = None  # of the last step; None before the first
    if not state.evaluations:
        yield evaluate(state, corpus, config)
    model.train()

    for step in steps:
        started = time.perf_counter()
        batch = corpus.batch(config.seed, step, config.batch_size, config.block_size, config.sampling)
        idx, targets = map(ranks.shard, batch)  # (B, T)
        seed_dropout(device, config.seed, step, ranks.rank())
        model.zero_grad(set_to_none=True)
        micro = micro_batch(device, config.block_size)
        loss = compute_gradients(state.forward, idx, targets, precision, micro, loss_of(model))
        due = (step + 1) % config.eval_interval == 0 or step + 1 == config.steps
        if due or device.type != "cuda":  # on CUDA, reading every loss would make the CPU wait for each step
            check_finite(loss, step)
        apply_update(state.optimizers, learning_rate(step, config), device, precision)
        after_update(model)
        state.step = step + 1
        if due:
            synchronize(device)
        state.seconds += time.perf_counter() - started
        if due:
            yield evaluate(state, corpus, config)
    if loss is not None:
        started = time.perf_counter()
        check_finite(loss, step)  # also if the steps ended early, before the state is saved; waits for the GPU
        state.seconds += time.perf_counter() - started


def evaluate(state: State, corpus: Corpus, config: TrainConfig) -> Evaluation:
    """Both exact losses: on the whole validation split, and on a piece of the train split."""

    def loss(ids):
        part = summed_loss(state.model, ids, config.block_size, ranks.rank(), ranks.world_size())
        return ranks.all_reduce_sum(part) / (len(ids) - 1)

    train_loss, val_loss = loss(train_piece(corpus)), loss(corpus.val)
    state.evaluations.append(Evaluation(state.step, train_loss, val_loss, state.seconds))
    return state.evaluations[-1]


def train_piece(corpus: Corpus) -> Tensor:
    """The start of the train split, a quarter as long as the validation split: ids (n,), n >= 2."""
    return corpus.train[: max(2, len(corpus.val) // TRAIN_PIECE)]
