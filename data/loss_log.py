"""The log of losses: one CSV with a row for each evaluation. Rows are only appended."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from data.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

LOSS_CSV = Path(__file__).resolve().parent / "loss_gpt_pd.csv"

COLUMNS = {
    "run": str,  # one training run: rung, seed, start time (UTC), four random digits
    "rung": str,  # its file's name
    "seed": int,
    "step": int,  # updates done when this row was measured
    "steps": int,  # updates of the whole run
    "train_loss": float,  # nats per character on a quarter as much text, from the start of the train split
    "val_loss": float,  # nats per character on the validation split, exact
    "tokens": int,  # characters trained on so far, repeats counted
    "seconds": float,  # of training so far, without evaluations
    "parameters": int,
    "device": str,
    "precision": str,
    "corpus": str,
    "corpus_sha256": str,  # its first 12 digits
    "config": str,  # hash of every setting that shapes the result
    "flags": str,  # the settings that differ from the rung's defaults; empty if none does
    "rung_code": str,  # hash of the rung's code, without its settings, docstrings and comments
    "shared_code": str,  # hash of the shared code that shapes a result (training/provenance.py)
    "commit": str,  # of the repository; a trailing + means uncommitted changes
    "torch": str,
    "processor": str,  # its model, and whether it has native bf16
    "threads": int,  # of torch, in each process
}

TAIL = 1 << 16  # bytes at the end of the file; longer than any line


class LossLog:
    """Appends whole rows to a CSV under a lock, so that several runs can share it.

    The lock is the operating system's: it ends with the process that holds it, so a dead process blocks no other.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))

    def check(self) -> None:
        """Raises UserError if no row can be appended: better before an hour of training than after it."""
        self._locked()

    def append(self, row: dict) -> None:
        """Add one row, with a value for every column. It is on disk when this returns."""
        if row.keys() != COLUMNS.keys():
            raise KeyError(f"a row has the columns {list(COLUMNS)}, not {list(row)}")
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[name] for name in COLUMNS])

        def write(file):
            end = file.seek(0, os.SEEK_END)
            header = "" if end else ",".join(COLUMNS) + "\n"
            data = (header + line.getvalue()).encode("utf-8")
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:  # a full disk, for example: take back what was written of the line
                file.truncate(end)
                raise

        self._locked(write)

    def _locked(self, action=None) -> None:
        """Under the lock: open the file, refuse a damaged one, call `action` with it; leave no empty file behind."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise OSError(errno.EINVAL, "it is not a file that rows can be added to")
            with tempfile.TemporaryFile(dir=self.path.parent):  # filelock would wait forever if no file can be made
                pass
            with self._lock:
                is_new = not self.path.exists()
                try:
                    with self.path.open("ab+", buffering=0) as file:  # a buffer would still write what was taken back
                        self._refuse_damage(file)
                        if action:
                            action(file)
                finally:
                    if is_new and not has_rows(self.path):
                        self.path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the loss log {self.path}: {error.strerror or error}; choose another with --loss-csv"
            ) from None

    def _refuse_damage(self, file) -> None:
        """A row after half a line would be lost with it; a row under other columns would be wrong."""
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(0)
        _check_header(self.path, file.readline().decode("utf-8-sig", "replace").strip())
        file.seek(max(0, end - TAIL))
        last = file.read().decode("utf-8", "replace").splitlines(keepends=True)[-1]
        if not _is_whole(last):
            file.seek(0)
            raise UserError(_torn(self.path, sum(1 for _ in file)))


def has_rows(path: Path) -> bool:
    """Whether there is a log, and anything in it."""
    return path.exists() and path.stat().st_size > 0


def read_log(path: Path) -> pd.DataFrame:
    """The log as a table with typed columns. Raises UserError, naming the line, for one that is damaged.

    A row that is there twice, as after two logs were merged, counts once.
    """
    import pandas as pd  # here, because runs do not need it and it takes long to import

    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel's "CSV UTF-8" begins with a byte-order mark
            header = file.readline()
            body = file.read()
    except FileNotFoundError:
        raise UserError(f"there is no loss log {path}; train a rung first, or name one with --loss-csv") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the loss log {path}: {error}") from None
    if not header:
        raise UserError(f"the loss log {path} is empty; train a rung first")
    _check_header(path, header.strip())
    lines = io.StringIO(body).readlines()
    for number, line in enumerate(lines, start=2):
        if not _is_whole(line):
            raise UserError(_torn(path, number))
        for (name, kind), value in zip(COLUMNS.items(), _fields(line), strict=True):
            try:
                if kind is float and ("_" in value or not math.isfinite(float(value))):
                    raise ValueError(value)
                if kind is int and not (value.isdecimal() and int(value) < 2**63):
                    raise ValueError(value)
            except ValueError:
                raise UserError(f"line {number} of {path} has {value!r} as its {name}; correct or delete it") from None
    rows = pd.read_csv(io.StringIO(header + body), dtype=COLUMNS, keep_default_na=False)
    return rows.drop_duplicates(["run", "step"], keep="last").reset_index(drop=True)


def _check_header(path: Path, header: str) -> None:
    if header != ",".join(COLUMNS):
        raise UserError(
            f"line 1 of {path} names other columns than this version writes ({','.join(COLUMNS)}); "
            "choose another file with --loss-csv, or move that one away"
        )


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a stray line break in the middle
        return []


def _is_whole(line: str) -> bool:
    return line.endswith("\n") and len(_fields(line)) == len(COLUMNS)


def _torn(path: Path, line: int) -> str:
    return f"line {line} of {path} is incomplete: not {len(COLUMNS)} fields and a line break; correct it or delete it"
