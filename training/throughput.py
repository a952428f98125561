"""How fast a run goes, measured before it starts: to tell its end, and to fit its steps into given minutes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from data import Corpus, UserError
from training import ranks
from training.config import TrainConfig
from training.device import synchronize
from training.evaluate import TOKENS_AT_ONCE, exact_loss
from training.generation import generate
from training.loop import train
from training.state import State

TRIAL_SECONDS = 3.0  # of the steps that are timed, about
SLOW = 5.0  # seconds; of steps that take longer, one tells enough
EVALUATIONS_SHARE = 0.05  # of a run of given minutes, for evaluations between the first and the last

# The dropout of a run of given minutes, by how many epochs it has at least: what is read more often is memorised more.
DROPOUT_BY_EPOCHS = ((0, 0.0), (5, 0.1), (10, 0.2))


@dataclass(frozen=True)
class Throughput:
    """Seconds that a training step, an evaluation of both splits and the sample at the end take."""

    step: float
    evaluation: float
    sample: float

    def seconds(self, config: TrainConfig, done: int = 0) -> float:
        """What a run takes from its first evaluation to its sample, where `done` steps are done already."""
        evaluations = 1 + -(-(config.steps - done) // config.eval_interval)
        return (config.steps - done) * self.step + evaluations * self.evaluation + self.sample

    def fit(self, config: TrainConfig, seconds: float) -> TrainConfig:
        """`config` with as many steps as `seconds` allow, evaluations and sample included. Raises UserError for none.

        Evaluations between the first and the last are spread out until they take no more than a twentieth of the time.
        """
        between = int(EVALUATIONS_SHARE * seconds / self.evaluation)
        steps = int((seconds - self.sample - (2 + between) * self.evaluation) / self.step)
        if steps < 1:
            needed = 60 * config.minutes - seconds + self.sample + 2 * self.evaluation + self.step
            raise UserError(
                f"--minutes {config.minutes:g} leaves no time for a step; start-up, two evaluations, a sample and "
                f"a step take {needed:.0f} s here: give it more, or use a smaller --batch-size or model"
            )
        return replace(config, steps=steps, eval_interval=max(config.eval_interval, -(-steps // (between + 1))))


def epochs(config: TrainConfig, corpus: Corpus) -> float:
    """How often a run reads the train split."""
    return config.steps * config.batch_size * config.block_size / len(corpus.train)


def with_dropout_for_its_epochs(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """`config` with the dropout that its epochs want, where it has one and none was given."""
    start = config.from_preset(getattr(config, "preset", None))
    if not hasattr(config, "dropout") or config.dropout != start.dropout:
        return config
    return replace(config, dropout=max(p for least, p in DROPOUT_BY_EPOCHS if epochs(config, corpus) >= least))


def measure_throughput(
    model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, *, compiled: bool = False
) -> Throughput:
    """Train `model` for a few steps with the loop itself, evaluate and sample a little, and put everything back.

    It changes nothing of what follows: weights and random states are put back. Every rank takes part, since they step
    together; all get rank 0's result.
    """
    device = corpus.train.device
    weights = copy.deepcopy(model.state_dict())
    kind = "cuda" if device.type == "cpu" else device.type  # the CPU's own random state is always among those kept
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=kind):
        try:
            step = _step_seconds(model, corpus, config, precision, compiled)
        finally:
            model.load_state_dict(weights)
            model.zero_grad(set_to_none=True)
        some = corpus.val[: max(TOKENS_AT_ONCE, config.block_size) + 1]
        evaluation = _seconds(lambda: exact_loss(model, some, config.block_size), device)
        prompt, characters = torch.zeros(1, dtype=torch.long), min(8, config.sample_length)
        sample = _seconds(lambda: generate(model, prompt, characters, config.block_size), device)
    evaluation *= 2 * (len(corpus.val) - 1) / (len(some) - 1)
    return ranks.broadcast(Throughput(step, evaluation, sample * config.sample_length / max(1, characters)))


def _step_seconds(model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, compiled: bool) -> float:
    """Mean seconds of a step, of the loop itself on a corpus with next to nothing to evaluate.

    The first step is slower than all others, the second says how many more are worth timing, in one go.
    """
    short = replace(corpus, val=corpus.val[: config.block_size + 1])

    def trial(steps: int, eval_interval: int) -> list[float]:
        # hardly any learning: a rate so high that the loss explodes is for the run itself to tell
        trial_config = replace(config, steps=steps, eval_interval=eval_interval, learning_rate=1e-8)
        state = State.at_start(model, trial_config, compiled=compiled)
        return [evaluation.seconds for evaluation in train(state, short, trial_config, precision, range(steps))]

    _, first, second = trial(2, eval_interval=1)
    one = ranks.broadcast(second - first)
    if one > SLOW:
        return one
    steps = min(100, max(3, round(TRIAL_SECONDS / max(one, 1e-6))))
    return trial(steps, eval_interval=steps)[-1] / steps


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long `call` takes the second time."""
    call()
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started
