"""Ctrl-C and other signals that end a run: noted when they come, obeyed between two steps, once the run is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from tqdm import tqdm

from training import ranks

# Ctrl-C; a polite kill; a closed terminal. Ctrl-Break is Windows' own, and SIGHUP it does not have.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
TYPED = [number for number in SIGNALS if number.name in ("SIGINT", "SIGBREAK")]


class Stop:
    """number: that of the signal that came, 0 while none has."""

    number: int = 0

    def wanted(self) -> bool:
        """Whether any rank was told to stop: all have to end after the same step."""
        return ranks.all_reduce_min(-self.number) < 0

    @property
    def exit_status(self) -> int:
        """As a shell counts: 128 and the signal."""
        return 128 + (self.number or signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While inside, the first signal is noted, and Ctrl-C after it raises KeyboardInterrupt, as it does otherwise.

    Others may come twice without anybody's wishing it: a terminal that is closed sends SIGHUP, and so does its shell.
    Signals that the process was started to ignore, as nohup does with SIGHUP, are ignored still.
    """
    stop = Stop()

    def note(number: int, frame) -> None:
        if stop.number and number in TYPED and not ranks.launched():  # torchrun passes on what each has had already
            raise KeyboardInterrupt
        stop.number = number
        if ranks.rank() == 0:
            at_once = b"" if ranks.launched() else b"; Ctrl-C again stops it at once"
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                # not print, which may have been interrupted in the middle of a line
                os.write(2, b"\nstopping after this step or evaluation, to save the run" + at_once + b"\n")

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def steps_until(stop: Stop, done: int, steps: int, bar: tqdm) -> Iterator[int]:
    """The steps that follow `done` others, counted on `bar`, up to `steps` of them all or until a signal has come."""
    for step in range(done, steps):
        if stop.wanted():
            return
        yield step
        bar.update()
