"""A run with --minutes: planned roughly; its start timed, to decide the number of steps; evaluated if there is time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data import Corpus
from training import console, ranks
from training.config import TrainConfig
from training.device import synchronize
from training.interrupt import Stop, steps_until
from training.loop import evaluate, train
from training.minutes import choose_steps, has_time_to_evaluate, rough_plan, timed_steps
from training.state import Evaluation, State
from training.throughput import Throughput

PARTS = 20  # of a run; after each it may be evaluated


def plan(
    corpus: Corpus, config: TrainConfig, throughput: Throughput, deadline: float, keep_dropout: bool
) -> TrainConfig:
    """The rough plan of a run that ends at `deadline`, by time.perf_counter: made by rank 0, returned on every rank."""
    if ranks.rank() == 0:
        config = rough_plan(config, throughput, deadline - time.perf_counter(), corpus, keep_dropout)
    return ranks.broadcast(config)


def begin(
    state: State,
    corpus: Corpus,
    planned: TrainConfig,
    precision: str,
    throughput: Throughput,
    deadline: float,
    script: Path,
    stop: Stop,
) -> tuple[TrainConfig, Throughput]:
    """Train the start of the planned run, and decide its number of steps by that time, on rank 0 for all.

    Returns the settings with that number, and the throughput as measured.
    """
    console.print_plan(planned)
    began, ended = time.perf_counter(), []  # when each step ended; the first is slower than all others

    def steps(bar: tqdm) -> Iterator[int]:
        for step in steps_until(stop, 0, timed_steps(planned), bar):
            yield step
            synchronize(corpus.train.device)
            ended.append(time.perf_counter())

    with console.progress_bar(script.stem, 0, planned.steps) as bar:
        unevaluated = replace(planned, eval_interval=planned.steps)
        for evaluation in train(state, corpus, unevaluated, precision, steps(bar)):
            console.show_evaluation(evaluation, bar)
            evaluated = time.perf_counter()
        bar.leave = False  # the bar of the whole run replaces it
    throughput = throughput.observed(ended, evaluated - began)
    config = ranks.broadcast(choose_steps(planned, throughput, deadline - time.perf_counter(), state.step))
    console.print_chosen_steps(script, config, corpus)
    return config, throughput


def train_until(
    deadline: float,
    state: State,
    corpus: Corpus,
    config: TrainConfig,
    precision: str,
    throughput: Throughput,
    steps: Iterator[int],
) -> Iterator[Evaluation]:
    """As `train`, for a run with --minutes that ends at `deadline`, by time.perf_counter.

    Evaluations before the last do not change the run; they are done when there is time.
    """
    unevaluated = replace(config, eval_interval=config.steps)
    part = -(-config.steps // PARTS)
    for end in [*range(part, config.steps, part), config.steps]:
        if state.step < end:
            # the last part runs `steps` to its end, which also completes the bar
            some = steps if end == config.steps else itertools.islice(steps, end - state.step)
            yield from train(state, corpus, unevaluated, precision, some)
            if state.step < end:  # a signal has arrived
                return
            left = deadline - time.perf_counter()
            if end < config.steps and ranks.broadcast(has_time_to_evaluate(config, state, throughput, left)):
                yield evaluate(state, corpus, config)
