"""A finished model on disk: tensors and plain values, nothing that runs when it is loaded."""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from data import UserError
from training.config import TrainConfig


def check_folder(folder: Path) -> None:
    """Make `folder`, where it is not there yet. Raises UserError where a checkpoint could not be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --runs-dir") from None


def save_checkpoint(path: Path, model: torch.nn.Module, config: TrainConfig, facts: dict) -> None:
    """Write the weights, the configuration and `facts` (plain values) to `path`: all of it, or nothing.

    Raises UserError where it cannot be written.
    """
    content = {
        "weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "facts": facts,
    }
    aside = None
    try:
        check_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            aside = Path(file.name)
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise UserError(f"cannot write the checkpoint {path}: {error}; choose another folder with --runs-dir") from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)  # gone already where all went well


def load_checkpoint(path: Path) -> dict:
    """What `save_checkpoint` wrote, on the CPU. Raises UserError for a file that is missing or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; train the rung first") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint of this project ({type(error).__name__}); train again") from None
    if not isinstance(content, dict) or not {"weights", "config"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of this project; train again")
    return content
