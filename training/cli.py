"""From the command line to a Config, and from an error to one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from data import UserError
from training import ranks
from training.config import TrainConfig, all_flags
from training.presets import Preset, ScaledConfig
from training.provenance import ROOT

# torch's words on Linux, Windows and MPS, in errors that have no type of their own
OUT_OF_MEMORY = re.compile("allocate memory|not enough memory|out of memory")


@dataclass(frozen=True)
class _PresetFlag:
    preset: Preset | None = None


def parse(config_type, description: str, args: Sequence[str] | None = None):
    """A `config_type` from the command line. Raises UserError for words that it does not understand.

    A type with presets is parsed twice by tyro: first the preset, whose settings become the defaults, then all flags.
    """
    default = {}
    if issubclass(config_type, ScaledConfig):
        chosen, _ = _cli(_PresetFlag, args=args, return_unknown_args=True, add_help=False)
        default["default"] = config_type.from_preset(chosen.preset)
    return _cli(config_type, description=description, args=args, **default)


def _cli(config_type, **options):
    said = io.StringIO()  # tyro draws its errors as a box, coloured if stdout is a terminal
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(config_type, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            print(said.getvalue())
            raise
        what = _one_line(said.getvalue())
        raise UserError(what.removeprefix(f"Error parsing {config_type.__name__}: ")) from None


def as_typed(script: Path, config: TrainConfig) -> str:
    """The command line that starts `script` with `config`, from the folder that the user is in."""
    try:
        path = script.relative_to(Path.cwd())
    except (ValueError, FileNotFoundError):  # the script is not below it, or the folder is gone
        path = script
    start = ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"] if ranks.launched() else ["python"]
    return (subprocess.list2cmdline if os.name == "nt" else shlex.join)([*start, str(path), *all_flags(config)])


def _one_line(box: str) -> str:
    """tyro's errors are a box: what is wrong, a rule, help. Return the first part, and name --help, in one line."""
    rows = [row.strip("│| ") for row in box.splitlines()[1:-1]]
    is_rule = [bool(row) and not row.strip("─-") for row in rows]
    start = int(any(is_rule[:1]))  # in an ASCII box the first row belongs to the title
    end = next((i for i in range(start, len(rows)) if is_rule[i]), None)
    return " ".join(rows[start:end]) + "; --help lists the flags"


class _Unbreakable:
    """A text stream that ignores a closed terminal or pipe, so that these do not end a run."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def unbreakable_output():
    """Inside, printing cannot fail."""
    with contextlib.redirect_stdout(_Unbreakable(sys.stdout)), contextlib.redirect_stderr(_Unbreakable(sys.stderr)):
        yield


def _check_copy(script: Path) -> None:
    """Raises UserError if `script` is of a copy of the project whose shared code is not the one imported here."""
    for folder in (script.parent, script.parent.parent):
        if (folder / "training" / "provenance.py").exists() and not folder.samefile(ROOT):
            raise UserError(
                f"{script} would use the code of {ROOT}, which is the installed copy of the project; "
                f"in {folder}, run pip install -e . first"
            )


@contextlib.contextmanager
def errors_in_one_line():
    """A UserError ends the process with one line and status 2; Ctrl-C with one line and status 130.

    A closed pipe, as in `compare.py | head -1`, ends it silently. A command of another copy of the project than the
    installed one, whose code it would import, is a UserError too.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, io.StringIO())
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without a character shows a mark instead
    try:
        _check_copy(Path(sys.argv[0]).resolve())
        yield
        sys.stdout.flush()  # here, because at the exit of Python a closed pipe would be an error
    except UserError as error:
        speaker = f"error of process {ranks.rank()}" if ranks.world_size() > 1 else "error"
        print(f"{speaker}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a closed pipe; Windows has another error for it
        if not isinstance(error, BrokenPipeError) and (os.name, error.errno) != ("nt", errno.EINVAL):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # because Python flushes it once more at exit
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
    except (MemoryError, RuntimeError) as error:  # some of torch's memory errors are RuntimeErrors
        if ranks.rank() > 0 and "gloo" in str(error):  # rank 0 has said what is wrong
            raise SystemExit(2) from None
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        print("error: out of memory; try a smaller --batch-size, --block-size or model", file=sys.stderr)
        raise SystemExit(2) from None
