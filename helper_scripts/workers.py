"""Runs in processes that go on to the next when one is done, so that Python and torch start once for many runs."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from data import UserError
from helper_scripts.models import rung_module
from training import TrainConfig, train_rung
from training.config import changed_flags


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
    """Of a run. logged: its name in the log. error: why there is none. warnings: the lines in which it warned."""

    logged: str = ""
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
    stopped = threading.Event()

    def keep_busy() -> None:
        worker = None
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                run = waiting.get_nowait()
                worker = worker or _Worker(threads=1 if jobs > 1 else None)
                result = worker.train(run, progress)
                if result is None:
                    worker, result = None, Result(error="its process was ended from outside; was there enough memory?")
                if not stopped.is_set():
                    finished(run, result)
        if worker:
            worker.dismiss()

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for thread in [pool.submit(keep_busy) for _ in range(jobs)]:
                thread.result()
        except BaseException:
            stopped.set()
            for process in multiprocessing.active_children():
                process.terminate()  # politely: where it is training, it saves the run first
            raise


class _Worker:
    def __init__(self, threads: int | None):
        context = multiprocessing.get_context("spawn")  # as on every system; a fork would share torch's threads
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_work, args=(end, threads), daemon=True)
        self.process.start()
        end.close()  # so that the pipe ends when the process does

    def train(self, run: Run, progress: Progress) -> Result | None:
        """None where the process died."""
        try:
            self.pipe.send(run)
            while not isinstance(news := self.pipe.recv(), Result):
                progress(run, news)
            return news
        except (EOFError, OSError):
            return None

    def dismiss(self) -> None:
        self.pipe.close()
        self.process.join()


def _work(pipe: Connection, threads: int | None) -> None:
    """What a worker's process does until its pipe is closed."""
    if threads is not None:
        torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            pipe.send(_train(pipe.recv(), pipe))


def _train(run: Run, pipe: Connection) -> Result:
    said = io.StringIO()
    steps = max(1, run.config.steps)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            logged, last = train_rung(
                rung_module(run.rung).LanguageModel, run.config, lambda evaluation: pipe.send(evaluation.step / steps)
            )
        except UserError as error:
            return Result(error=str(error))
        except Exception as error:  # a fault of the rung's own must not keep the others from theirs
            return Result(error=f"{type(error).__name__}: {error}".partition("\n")[0])
    warnings = [line for line in said.getvalue().splitlines() if line.startswith("WARNING: ")]
    return Result(logged, last.val_loss, warnings=warnings)
