"""Runs in processes that go on to the next when one is done, so that Python and torch start once for many runs."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from data import UserError
from helper_scripts.models import rung_module
from training import TrainConfig, train_rung
from training.config import changed_flags
from training.state import Evaluation


@dataclass(frozen=True)
class Run:
    """One to do. weight: how long it takes, in any unit that is the same for all."""

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


Progress = Callable[[Run, float], None]  # is told a run and the share of it that is done
Finished = Callable[[Run, Result], None]


def train_all(runs: list[Run], jobs: int, progress: Progress, finished: Finished) -> None:
    """Train them in that order, `jobs` at a time, in processes of one thread each; one alone has all cores.

    Both are called from several threads. A run that fails, or whose process dies, is a Result like any other. Ctrl-C
    has the processes save their runs, and goes on as KeyboardInterrupt.
    """
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in runs:
        waiting.put(run)
    workers: list[_Worker] = []
    stopped = threading.Event()

    def keep_busy() -> None:
        worker = None
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                run = waiting.get_nowait()
                if worker is None:
                    worker = _Worker(threads=1 if jobs > 1 else None)
                    workers.append(worker)
                    if stopped.is_set():  # meanwhile
                        worker.let_go()
                result = worker.train(run, progress)
                if result is None:
                    worker, result = None, Result(error="its process was ended from outside; was there enough memory?")
                if not stopped.is_set():
                    finished(run, result)
        if worker is not None:
            worker.pipe.close()

    with ThreadPoolExecutor(jobs) as pool:
        threads = {pool.submit(keep_busy) for _ in range(jobs)}
        try:
            while threads:  # a wait without end could not be interrupted on Windows
                done, threads = wait(threads, timeout=0.2, return_when=FIRST_EXCEPTION)
                for thread in done:
                    thread.result()
        finally:
            stopped.set()
            for worker in workers:
                worker.let_go()
            for worker in workers:
                worker.process.join()


class _Worker:
    """A process that trains what it is sent, as long as this one holds the other end of its lifeline."""

    def __init__(self, threads: int | None):
        context = multiprocessing.get_context("spawn")  # as on every system; a fork would share torch's threads
        self.pipe, its_pipe = context.Pipe()
        its_lifeline, self.lifeline = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(its_pipe, its_lifeline, threads), daemon=True)
        self.process.start()
        its_pipe.close()  # so that the pipe ends when the process does
        its_lifeline.close()

    def train(self, run: Run, progress: Progress) -> Result | None:
        """None where the process died."""
        try:
            self.pipe.send(run)
            while not isinstance(news := self.pipe.recv(), Result):
                progress(run, news)
            return news
        except (EOFError, OSError):
            return None

    def let_go(self) -> None:
        """Have it end; where it is training, it saves the run first."""
        self.lifeline.close()


def _work(pipe: Connection, lifeline: Connection, threads: int | None) -> None:
    """What a worker's process does, until there is no more to do or the lifeline ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; it is for the first to pass it on
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # but for a run, which is saved first
    idle = threading.Event()
    idle.set()
    threading.Thread(target=_stop_at_the_end_of, args=(lifeline, idle), name="lifeline", daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError):
        while True:
            run = pipe.recv()
            idle.clear()
            result = _train(run, pipe)
            idle.set()  # before the result is out: whoever has it may let go at once
            pipe.send(result)


def _stop_at_the_end_of(lifeline: Connection, idle: threading.Event) -> None:
    """When the process that holds its other end lets go, or dies, stop a run as a polite kill would."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    if not idle.is_set():  # if it is, the pipe has ended too
        signal.raise_signal(signal.SIGTERM)


def _train(run: Run, pipe: Connection) -> Result:
    steps, said = max(1, run.config.steps), io.StringIO()

    def tell(evaluation: Evaluation) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more: the lifeline will have it stop
            pipe.send(evaluation.step / steps)

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            last = train_rung(rung_module(run.rung).LanguageModel, run.config, tell)
        except UserError as error:
            return Result(error=str(error))
        except Exception as error:  # a fault of the rung's own must not keep the others from theirs
            return Result(error=f"{type(error).__name__}: {error}".partition("\n")[0])
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("WARNING: ")]
    return Result(last.val_loss, warnings=warnings)
