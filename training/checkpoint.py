"""A run on disk: tensors and plain values. Loading it executes no code."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from data import UserError
from data.files import atomic_write
from training.config import TrainConfig, config_hash
from training.state import State

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.PickleError)

# What a checkpoint of this version has; of the metadata, what is read from it.
PARTS = {"weights", "optimizers", "step", "seconds", "evaluations", "config", "metadata"}
METADATA = {"run", "rung", "seed", "steps", "parameters", "corpus", "corpus_sha256", "alphabet"}
METADATA |= {"rung_code", "shared_code", "commit", "torch", "device", "processor", "threads", "precision"}


def checkpoint_path(rung: str, config: TrainConfig, sha256: str, *, finished: bool = True) -> Path:
    """Where a run saves its model. An unfinished run has another file name, so it does not replace a finished one."""
    ending = "pt" if finished else "partial.pt"
    return config.runs_dir / f"{rung}-seed{config.seed}-{sha256[:6]}-{config_hash(config)}.{ending}"


def check_folder(folder: Path) -> None:
    """Make `folder` if needed. Raises UserError if a checkpoint could not be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --runs-dir") from None


def save_checkpoint(path: Path, state: State, config: TrainConfig, metadata: dict) -> None:
    """Write all that is needed to go on from `state`, with `config` and `metadata` (plain values), atomically.

    After the last step, the optimizers are left out; they would be half of the file or more. Raises UserError if the
    file cannot be written; the earlier file is then still there.
    """
    content = {
        "weights": state.model.state_dict(),
        "optimizers": [each.state_dict()["state"] for each in state.optimizers] if state.step < config.steps else None,
        "step": state.step,
        "seconds": state.seconds,
        "evaluations": [asdict(evaluation) for evaluation in state.evaluations],
        "config": {name: as_saved(value) for name, value in asdict(config).items()},
        "metadata": metadata,
    }
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(
            f"cannot write the checkpoint {path}: {reason}; choose another folder with --runs-dir"
        ) from None


def as_saved(value):
    """A setting as it is saved: paths, alone or in a tuple, become text."""
    if isinstance(value, tuple):
        return [as_saved(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def load_checkpoint(path: Path) -> dict:
    """What `save_checkpoint` wrote, on the CPU. Raises UserError for a file that is missing or not a checkpoint."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; train the rung first") from None
    except UNREADABLE as error:
        raise UserError(f"{path} is not a checkpoint of this project ({type(error).__name__}); train again") from None
    if not (isinstance(content, dict) and content.keys() >= PARTS and content["metadata"].keys() >= METADATA):
        raise UserError(f"{path} is not a checkpoint of this version of the project; train again")
    return content
