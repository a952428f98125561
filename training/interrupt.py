"""Ctrl-C and other signals: recorded when they arrive; the run ends after the current step, once it is saved."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm

from training import ranks

# Ctrl-C; kill; a closed terminal. Only Windows has Ctrl-Break (SIGBREAK), and it has no SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
TYPED = [number for number in SIGNALS if number.name in ("SIGINT", "SIGBREAK")]


class Stop:
    """number: of the signal that arrived; 0 if none has."""

    number: int = 0

    def wanted(self) -> bool:
        """Whether any rank got a signal: all have to end after the same step."""
        return ranks.all_reduce_min(-self.number) < 0

    @property
    def exit_status(self) -> int:
        """As in a shell: 128 plus the signal's number."""
        return 128 + (self.number or signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Inside, the first signal is only recorded; a Ctrl-C after it raises KeyboardInterrupt as usual.

    Other signals may arrive twice by accident: a closed terminal sends SIGHUP, and its shell sends it again. Signals
    that the process ignored at its start, as SIGHUP under nohup, stay ignored.
    """
    stop = Stop()

    def note(number: int, frame) -> None:
        if stop.number and number in TYPED and not ranks.launched():  # torchrun sends each process a second one
            raise KeyboardInterrupt
        stop.number = number
        if ranks.rank() == 0 and multiprocessing.parent_process() is None:  # a worker's parent tells the user
            at_once = b"" if ranks.launched() else b"; Ctrl-C again stops it at once"
            with contextlib.suppress(OSError):  # the terminal may be closed
                # not print, because the signal may have interrupted a print
                os.write(2, b"\nstopping after this step or evaluation, to save the run" + at_once + b"\n")

    before = {}
    if threading.current_thread() is threading.main_thread():  # other threads may not set handlers
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def steps_until(
    stop: Stop, done: int, steps: int, bar: tqdm, on_step: Callable[[int], None] = lambda done: None
) -> Iterator[int]:
    """The step numbers from `done` to `steps` - 1, shown on `bar`; they end early after a signal.

    After each, `on_step` is called with the number of steps that are done.
    """
    for step in range(done, steps):
        if stop.wanted():
            return
        yield step
        bar.update()
        on_step(step + 1)
