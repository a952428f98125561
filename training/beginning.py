"""The start of a run with --minutes: planned roughly, then trained and timed, to decide the number of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data import Corpus
from training import console, ranks
from training.config import TrainConfig
from training.interrupt import Stop, steps_until
from training.loop import train
from training.minutes import rough_plan, settle, timed_steps
from training.state import State
from training.throughput import Throughput


def plan(corpus: Corpus, config: TrainConfig, throughput: Throughput, started: float) -> TrainConfig:
    """The rough plan of a run with --minutes: made by rank 0, returned on every rank."""
    if ranks.rank() == 0:
        config = rough_plan(config, throughput, 60 * config.minutes - (time.perf_counter() - started), corpus)
    return ranks.broadcast(config)


def begin(
    state: State,
    corpus: Corpus,
    planned: TrainConfig,
    precision: str,
    throughput: Throughput,
    started: float,
    script: Path,
    stop: Stop,
) -> TrainConfig:
    """Train the start of the planned run, and decide its number of steps by that time, on rank 0 for all."""
    console.say_what_is_planned(planned)
    began, ended = time.perf_counter(), []  # when each step ended; the first is slower than all others

    def steps(bar: tqdm) -> Iterator[int]:
        for step in steps_until(stop, 0, timed_steps(planned), bar):
            yield step
            ended.append(time.perf_counter())

    with console.progress_bar(script.stem, 0, planned.steps) as bar:
        unevaluated = replace(planned, eval_interval=planned.steps)
        for evaluation in train(state, corpus, unevaluated, precision, steps(bar)):
            console.show_evaluation(evaluation, bar)
            evaluated = time.perf_counter()
        bar.leave = False  # the bar of the whole run replaces it
    throughput = throughput.observed(ended, evaluated - began)
    left = 60 * planned.minutes - (time.perf_counter() - started)
    config = ranks.broadcast(settle(planned, throughput, left, state.step))
    console.say_what_was_settled(script, config, corpus)
    return config
