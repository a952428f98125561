"""How fast a run goes, measured before it starts: what its end, its length and its compilation are planned by."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from data import Corpus, UserError
from training.config import TrainConfig
from training.device import synchronize
from training.evaluate import exact_loss
from training.loop import train
from training.sampling import sample

TRIAL_STEPS = 6  # the first few are slower than all others; the median of the last four counts
EVALUATIONS_SHARE = 0.05  # of a run of given minutes, for evaluations between the first and the last


@dataclass(frozen=True)
class Pace:
    """Seconds that a training step, an evaluation of both splits and the sample at the end take."""

    step: float
    evaluation: float
    sample: float

    def seconds(self, config: TrainConfig) -> float:
        """What a run takes from its first evaluation to its sample."""
        evaluations = 1 + -(-config.steps // config.eval_interval)
        return config.steps * self.step + evaluations * self.evaluation + self.sample

    def fit(self, config: TrainConfig, seconds: float) -> TrainConfig:
        """`config` with as many steps as `seconds` allow, evaluations and sample included. Raises UserError for none.

        The learning rate is scheduled by the steps, so it ends its fall just as the time is up. Evaluations between
        the first and the last are spread out until they take no more than a twentieth of the time.
        """
        between = int(EVALUATIONS_SHARE * seconds / self.evaluation)
        steps = int((seconds - self.sample - (2 + between) * self.evaluation) / self.step)
        if steps < 1:
            needed = (2 * self.evaluation + self.sample + self.step) / 60
            raise UserError(
                f"--minutes {config.minutes:g} leaves no time for a step: two evaluations and a sample take "
                f"{needed:.1f} here; give it more, or use a smaller --n-embd or --n-layer"
            )
        interval = max(config.eval_interval, -(-steps // (between + 1)))
        return replace(config, steps=steps, eval_interval=interval)


def measure_pace(
    model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, *, compiled: bool = False
) -> Pace:
    """Train `model` for a few steps with the loop itself, evaluate and sample a little, and put everything back.

    What follows is not changed by it: the weights and the state of the random generators are those of before.
    """
    device = corpus.train.device
    weights = copy.deepcopy(model.state_dict())
    short = replace(corpus, val=corpus.val[: config.block_size + 1])  # with next to nothing to evaluate
    trial = replace(config, steps=TRIAL_STEPS, eval_interval=1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run = train(model, short, trial, precision, range(TRIAL_STEPS), compiled=compiled)
        ends = [evaluation.seconds for evaluation in run]
        model.load_state_dict(weights)
        some = corpus.val[: 16 * config.block_size + 1]
        evaluating = _seconds(lambda: exact_loss(model, some, config.block_size), device)
        prompt, characters = torch.zeros(1, dtype=torch.long), min(8, config.sample_length)
        sampling = _seconds(lambda: sample(model, prompt, characters, config.block_size), device)
    return Pace(
        step=statistics.median(after - before for before, after in itertools.pairwise(ends[2:])),
        evaluation=2 * evaluating * len(corpus.val) / len(some),
        sample=sampling * config.sample_length / max(1, characters),
    )


def _seconds(call, device: torch.device) -> float:
    """Of the second of two calls."""
    call()
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started
