"""How --minutes finds the number of steps: a rough plan, then the timed beginning of the run.

The learning rate of the beginning is the same for any number of steps (training/schedule.py). So the beginning is part
of the run: it is trained by the rough plan, and timed. Then the number of steps is decided. The run is the same as one
with --steps and that number, but for its evaluations: they make up for steps that are later slower or faster.
"""

from __future__ import annotations

import math
from dataclasses import replace

from data import Corpus, UserError
from training.config import TrainConfig
from training.state import State
from training.throughput import Throughput, epochs

EVALUATIONS_SHARE = 0.05  # of the time, for evaluations between the first and the last, and for errors of the plan
# The schedule allows a warm-up of a tenth of the steps. The plan has one of a twentieth, because it may have twice too
# many steps.
WARMUP_DIVISOR = 10
BEGINNING_DIVISOR = 20

# Smaller models for short times, each with the number of epochs above which the next larger one has a lower loss in the
# same time (docs/log.md). After the last comes the rung's own size.
SMALL = (({"preset": "quick", "n_layer": 4}, 2.5), ({"preset": "quick"}, 8))
SIZES = {"preset", "n_layer", "n_embd", "n_head", "block_size"}

# The dropout of a run with --minutes, by its least number of epochs: a text that is read more often is memorised more.
DROPOUT_BY_EPOCHS = ((0, 0.0), (5, 0.1), (10, 0.2))


def sizes(config: TrainConfig) -> list[tuple[TrainConfig, float]]:
    """Candidates for --minutes, smallest first, each with the epochs from which a larger model does better.

    Only `config` itself without --minutes, with a preset or a size other than the rung's own, and for rungs without
    `small_for_minutes`. Other settings that differ from the rung's own override those of the small sizes.
    """
    own = type(config)()
    named = {name: value for name, value in vars(config).items() if value != getattr(own, name)}
    if not (config.minutes and getattr(config, "small_for_minutes", False)) or named.keys() & SIZES:
        return [(config, math.inf)]
    small = [(replace(config.from_preset(of["preset"]), **(of | named)), too_many) for of, too_many in SMALL]
    return [*small, (config, math.inf)]


def is_large_enough(config: TrainConfig, throughput: Throughput, corpus: Corpus, too_many: float) -> bool:
    """Whether fewer than `too_many` epochs fit into the minutes of `config`."""
    return 60 * config.minutes / throughput.step * epochs(replace(config, steps=1), corpus) < too_many


def rough_plan(
    config: TrainConfig, throughput: Throughput, seconds: float, corpus: Corpus, keep_dropout: bool = True
) -> TrainConfig:
    """`config` with what has to be known before the first step: the warm-up and the dropout.

    Its number of steps is a rough estimate, from `seconds` and `throughput`. Raises UserError if there is no time for a
    step.
    """
    steps = int((seconds - throughput.sample - 2 * throughput.evaluation) / throughput.step)
    if steps < 1:
        needed = 60 * config.minutes - seconds + throughput.sample + 2 * throughput.evaluation + throughput.step
        raise UserError(
            f"--minutes {config.minutes:g} leaves no time for a step; start-up, two evaluations, a sample and "
            f"a step take {needed:.0f} s here: give it more, or use a smaller --batch-size or model"
        )
    config = replace(config, steps=steps, warmup_steps=min(config.warmup_steps, steps // BEGINNING_DIVISOR))
    return config if keep_dropout else with_dropout_for_its_epochs(config, corpus)


def timed_steps(plan: TrainConfig) -> int:
    """How many steps of `plan` are the same for any number of steps that `choose_steps` may choose."""
    steps = plan.warmup_steps + 1 if plan.schedule == "linear" else plan.steps // BEGINNING_DIVISOR
    return min(steps, plan.steps - 1)


def choose_steps(plan: TrainConfig, throughput: Throughput, seconds: float, done: int) -> TrainConfig:
    """`plan` with its number of steps: the `done` steps of the beginning, and those that fit into `seconds`.

    The time includes the last evaluation and the sample, and a twentieth for evaluations before the last.
    """
    seconds = (1 - EVALUATIONS_SHARE) * seconds - throughput.sample - throughput.evaluation
    return replace(plan, steps=max(done + int(seconds / throughput.step), done + 1, WARMUP_DIVISOR * plan.warmup_steps))


def has_time_to_evaluate(config: TrainConfig, state: State, throughput: Throughput, seconds: float) -> bool:
    """Whether a run with --minutes, with `seconds` left, should evaluate now.

    At its speed so far, the run would end some seconds early. Evaluations use these seconds, evenly over the steps: a
    slow run evaluates less often, a fast one more often. Both end within half an evaluation of their time, unless the
    steps become slower by more than EVALUATIONS_SHARE.
    """
    rest = (config.steps - state.step) * state.seconds / state.step + throughput.evaluation + throughput.sample
    unused = seconds - rest
    return unused * state.step / config.steps > throughput.evaluation / 2


def sets_dropout(config: TrainConfig) -> bool:
    """Whether the user gave a dropout, other than the default; also for a rung without dropout."""
    default = config.from_preset(getattr(config, "preset", None))
    return not hasattr(config, "dropout") or config.dropout != default.dropout


def with_dropout_for_its_epochs(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """`config` with the dropout for its number of epochs."""
    return replace(config, dropout=max(p for least, p in DROPOUT_BY_EPOCHS if epochs(config, corpus) >= least))
