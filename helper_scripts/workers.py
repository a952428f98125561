"""Worker processes that train one run after the other, so that Python and torch start once for many runs."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import torch

from data import UserError
from helper_scripts.models import one_line, rung_module
from training import TrainConfig, train_rung
from training.config import changed_flags

PAUSE = 1  # seconds between two reports of a run's progress


@dataclass(frozen=True)
class Run:
    """A run to train. weight: how long it takes, in any unit that is the same for all."""

    rung: str
    config: TrainConfig
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.rung} {changed_flags(self.config)}".rstrip() + f", seed {self.config.seed}"


@dataclass(frozen=True)
class Result:
    """Of a run. error: why it has no loss. warnings: the lines in which it warned."""

    val_loss: float = float("nan")
    error: str = ""
    warnings: list[str] = field(default_factory=list)


DIED = Result(error="its process was ended from outside; was there enough memory?")


def train_all(
    runs: list[Run], jobs: int, progress: Callable[[Run, float], None], finished: Callable[[Run, Result], None]
) -> None:
    """Train them in that order, `jobs` at a time, in processes of one thread each; a single job has all cores.

    `progress` is told which share of a run is done, first at its start, where a resumed run has a share already. A run
    that fails, or whose process dies, is a Result like any other. Ctrl-C has the processes save their runs, and goes on
    as KeyboardInterrupt.
    """
    waiting, busy, idle, workers = deque(runs), {}, [], []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                if not idle:
                    idle.append(_Worker(threads=1 if jobs > 1 else None))
                    workers.append(idle[0])
                worker, run = idle.pop(), waiting.popleft()
                busy[worker.pipe] = worker, run
                with contextlib.suppress(OSError):  # if it has died, reading its pipe fails below
                    worker.pipe.send(run)
            ready = wait(list(busy), timeout=0.2)  # a wait without end could not be interrupted on Windows
            # there, the pipe of a worker that dies while it starts does not end
            for pipe in ready or [pipe for pipe, (worker, _) in busy.items() if not worker.process.is_alive()]:
                worker, run = busy[pipe]
                try:
                    news = pipe.recv() if pipe.poll() else DIED
                except (EOFError, OSError):
                    news = DIED
                if not isinstance(news, Result):
                    progress(run, news)
                    continue
                if news is not DIED:
                    idle.append(worker)
                del busy[pipe]
                finished(run, news)
    except KeyboardInterrupt:
        print("\nstopping after the present steps or evaluations, to save the runs", file=sys.stderr, flush=True)
        raise
    finally:
        for worker in workers:
            worker.let_go()
        for worker in workers:
            worker.process.join()


class _Worker:
    """A process that trains the runs it is sent, until this process closes its lifeline, or dies."""

    def __init__(self, threads: int | None):
        context = multiprocessing.get_context("spawn")  # as on every system; a fork would share torch's threads
        self.pipe, its_pipe = context.Pipe()
        its_lifeline, self.lifeline = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(its_pipe, its_lifeline, threads), daemon=True)
        self.process.start()
        its_pipe.close()  # so that the pipe ends when the process does
        its_lifeline.close()

    def let_go(self) -> None:
        """End it; if it is training, it saves the run first."""
        self.pipe.close()
        self.lifeline.close()


def _work(pipe: Connection, lifeline: Connection, threads: int | None) -> None:
    """The loop of a worker's process, until there are no more runs or the lifeline closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the first process passes it on
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # between runs; a run saves itself
    idle, released = threading.Event(), threading.Event()
    idle.set()
    threading.Thread(target=_stop_with, args=(lifeline, idle, released), name="lifeline", daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError):
        while True:
            run = pipe.recv()
            idle.clear()
            if released.is_set():  # the run was still in the pipe
                return
            result = _train(run, pipe)
            idle.set()  # before the result is sent: its receiver may end this process at once
            pipe.send(result)


def _stop_with(lifeline: Connection, idle: threading.Event, released: threading.Event) -> None:
    """When the process that holds the other end lets go, or dies, stop a run as SIGTERM would."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    released.set()
    if not idle.is_set():
        signal.raise_signal(signal.SIGTERM)


def _train(run: Run, pipe: Connection) -> Result:
    said, due = io.StringIO(), time.monotonic()

    def tell(done: int) -> None:
        nonlocal due
        if time.monotonic() >= due or done == run.config.steps:
            due = time.monotonic() + PAUSE
            with contextlib.suppress(OSError):  # if the other process has ended, the lifeline ends this one
                pipe.send(done / run.config.steps)

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            last = train_rung(rung_module(run.rung).LanguageModel, run.config, tell)
        except UserError as error:
            return Result(error=str(error))
        except Exception as error:  # a fault in one rung must not keep the others from training
            return Result(error=f"{type(error).__name__}: {one_line(error)}")
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("WARNING: ")]
    return Result(last.val_loss, warnings=warnings)
