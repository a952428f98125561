"""Files that are replaced completely or not at all, and text from files that a terminal can show."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline: a terminal would act on them


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It replaces `path` when the block ends without an error.

    By then it is on disk. Raises OSError where that fails; what was at `path` is then still there. Folders are made.
    """
    path = path.resolve()  # for a link, the file that it points to
    temporary = path.with_name(f"{path.name}.tmp")  # a killed process may leave it; the next write replaces it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # without an error, it is gone already


def _sync_folder(folder: Path) -> None:
    """Have the new name on disk as well; Windows does so by itself, and opens no folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems cannot; the file itself is complete and in place
            os.fsync(descriptor)
        os.close(descriptor)


def visible(text: str) -> str:
    """`text` with a mark in place of each control character but newline and tab."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))  # the carriage return of a Windows newline


def printable(text: str) -> str:
    """Text from a file, made fit for any terminal: control characters and their like escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
