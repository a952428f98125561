"""Keep freed memory in the process, so that the next training step does not ask the system for it again."""

from __future__ import annotations

import ctypes
import sys

# options of glibc's mallopt, from its malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep freed memory in the heap, on Linux with glibc; elsewhere do nothing.

    By default the memory of a freed large tensor goes back to the system, and each page of the next one costs a fault.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never give back its end
