"""How fast a run will go, measured roughly before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from data import Corpus
from training import ranks
from training.config import TrainConfig
from training.device import micro_batch, synchronize
from training.evaluate import exact_loss
from training.generation import generate
from training.loop import train, train_piece
from training.state import State

TRIAL_SECONDS = 0.5  # of the steps that are timed, about
TRIAL_TOKENS = 1024  # to evaluate
TRIAL_RATE = 1e-3  # the highest learning rate of a trial: at a higher one the loss may explode


@dataclass(frozen=True)
class Throughput:
    """Seconds that a training step, an evaluation of both splits and the sample at the end take."""

    step: float
    evaluation: float
    sample: float

    def seconds(self, config: TrainConfig, done: int = 0) -> float:
        """The seconds from the first evaluation to the sample, if `done` steps are already done."""
        evaluations = 1 + -(-(config.steps - done) // config.eval_interval)
        return (config.steps - done) * self.step + evaluations * self.evaluation + self.sample

    def observed(self, ended: list[float], evaluation: float) -> Throughput:
        """As measured in the run's beginning. ended: when each step ended, by a clock in seconds.

        After fewer than four steps the trial's step time is kept.
        """
        step = (ended[-1] - ended[0]) / (len(ended) - 1) if len(ended) > 3 else self.step
        return replace(self, step=step, evaluation=evaluation)


def epochs(config: TrainConfig, corpus: Corpus) -> float:
    """How often a run reads the train split."""
    return config.steps * config.batch_size * config.block_size / len(corpus.train)


def measure_throughput(
    model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, *, compiled: bool = False
) -> Throughput:
    """Train `model` for a few steps with the loop itself, evaluate and sample a little, and restore everything.

    It does not change what follows: weights and random states are restored. All ranks take part, because they step
    together; all get rank 0's result.
    """
    device = corpus.train.device
    weights = copy.deepcopy(model.state_dict())
    kind = "cuda" if device.type == "cpu" else device.type  # the CPU's random state is always restored too
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=kind):
        try:
            step = _step_seconds(model, corpus, config, precision, compiled)
        finally:
            model.load_state_dict(weights)
            model.zero_grad(set_to_none=True)
        some = corpus.val[: max(TRIAL_TOKENS, config.block_size) + 1]
        evaluation = _seconds(lambda: exact_loss(model, some, config.block_size), device)
        prompt, characters = torch.zeros(1, dtype=torch.long), min(8, config.sample_length)
        sample = _seconds(lambda: generate(model, prompt, characters, config.block_size), device)
    evaluation *= (len(corpus.val) + len(train_piece(corpus))) / len(some) / ranks.world_size()  # each has a part
    return ranks.broadcast(Throughput(step, evaluation, sample * config.sample_length / max(1, characters)))


def _step_seconds(model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, compiled: bool) -> float:
    """Mean seconds of a step of the loop itself, on a corpus with a very short validation split.

    If a batch is processed in parts, one part is timed. The first step is slower than all others; the second decides
    how many more are timed.
    """
    short = replace(corpus, val=corpus.val[: config.block_size + 1])
    batch_size = min(config.batch_size, ranks.world_size() * micro_batch(corpus.train.device, config.block_size))
    rate = min(config.learning_rate, TRIAL_RATE)
    config_here = replace(config, batch_size=batch_size, learning_rate=rate)

    def trial(steps: int, eval_interval: int) -> list[float]:
        trial_config = replace(config_here, steps=steps, eval_interval=eval_interval)
        state = State.at_start(model, trial_config, compiled=compiled)
        return [evaluation.seconds for evaluation in train(state, short, trial_config, precision, range(steps))]

    _, first, second = trial(2, eval_interval=1)
    one = ranks.broadcast(second - first)
    steps = min(100, round(TRIAL_SECONDS / max(one, 1e-6)))
    if steps > 1:
        one = trial(steps, eval_interval=steps)[-1] / steps
    return one * config.batch_size / batch_size


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long `call` takes the second time."""
    call()
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started
