"""A run on disk: tensors and plain values, nothing that is executed when it is loaded."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from data import UserError
from training.config import TrainConfig
from training.state import State

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.PickleError)
KEYS = {"weights", "optimizer", "step", "seconds", "evaluation", "config", "facts"}


def check_folder(folder: Path) -> None:
    """Make `folder`, where it is not there yet. Raises UserError where a checkpoint could not be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --runs-dir") from None


def save_checkpoint(path: Path, state: State, config: TrainConfig, facts: dict) -> None:
    """Write all that it takes to go on from `state`, with `config` and `facts` (plain values): all of it, or nothing.

    After the last step the optimizer, two thirds of the file, is left out. Raises UserError where the file cannot be
    written; the one before it is then still in its place.
    """
    content = {
        "weights": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict() if state.step < config.steps else None,
        "step": state.step,
        "seconds": state.seconds,
        "evaluation": asdict(state.evaluation),
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "facts": facts,
    }
    aside = None
    try:
        check_folder(path.parent)
        for left in path.parent.glob(f"{path.name}*.tmp"):  # by a process that was killed in the middle of this
            left.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            aside = Path(file.name)
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(
            f"cannot write the checkpoint {path}: {reason}; choose another folder with --runs-dir"
        ) from None
    finally:
        if aside is not None:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)  # gone already where all went well


def load_checkpoint(path: Path) -> dict:
    """What `save_checkpoint` wrote, on the CPU. Raises UserError for a file that is missing or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; train the rung first") from None
    except UNREADABLE as error:
        raise UserError(f"{path} is not a checkpoint of this project ({type(error).__name__}); train again") from None
    if not (isinstance(content, dict) and content.keys() >= KEYS and _are_dicts(content["config"], content["facts"])):
        raise UserError(f"{path} is not a checkpoint of this version of the project; train again")
    return content


def _are_dicts(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _sync_folder(folder: Path) -> None:
    """Have the new name on disk as well; Windows does so by itself, and opens no folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
