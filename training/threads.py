"""How many CPU threads a run uses. If another process is busy, fewer threads can be several times as fast."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from data import Corpus
from training import ranks
from training.config import TrainConfig
from training.resume import metadata_before
from training.throughput import Throughput

WORTH_TIMING = 60  # seconds; a shorter run keeps torch's own number of threads
FASTER = 0.9  # of the time with more threads; a smaller gain may be chance


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Afterwards torch has as many threads as before, for other runs in this process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(
    measure: Callable[[], Throughput], config: TrainConfig, corpus: Corpus, rung: str
) -> tuple[TrainConfig, Throughput]:
    """`config` with its number of threads, if that is not torch's own, and the throughput that `measure` returns then.

    A resumed run keeps its number.
    """
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    elif threads_are_free(corpus.train.device):
        if not config.resume:
            every, throughput = torch.get_num_threads(), with_fastest_threads(measure, config)
            chosen = torch.get_num_threads()
            return (config if chosen == every else replace(config, threads=chosen)), throughput
        if before := metadata_before(rung, config, corpus.sha256):
            torch.set_num_threads(before["threads"])
    return config, measure()


def threads_are_free(device: torch.device) -> bool:
    """Whether a run on `device` may choose the number: neither the environment nor torchrun sets it."""
    return device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and not ranks.launched()


def with_fastest_threads(measure: Callable[[], Throughput], config: TrainConfig) -> Throughput:
    """The throughput with all, half or one of torch's threads, whichever is fastest; torch then keeps that number.

    Half and one are tried only in a long run, and only while fewer are faster.
    """
    every, best = torch.get_num_threads(), measure()
    chosen = every
    if (60 * config.minutes or best.seconds(config)) < WORTH_TIMING:
        return best
    for threads in sorted({every // 2, 1} - {0, every}, reverse=True):
        torch.set_num_threads(threads)
        throughput = measure()
        if throughput.step > FASTER * best.step:
            break
        best, chosen = throughput, threads
    torch.set_num_threads(chosen)
    return best
