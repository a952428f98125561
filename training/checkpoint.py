"""A run on disk: tensors and plain values, nothing that is executed when it is loaded."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from data import UserError
from training.config import TrainConfig, fingerprint
from training.state import Evaluation, State

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.PickleError)

LOSSES = {"step": int, "train_loss": float, "val_loss": float, "seconds": float}
FACTS = {"run": str, "experiment": str, "seed": int, "steps": int, "parameters": int, "device": str, "precision": str}
FACTS |= {"corpus_sha256": str, "commit": str, "torch": str, "alphabet": str, "threads": int}


def checkpoint_path(experiment: str, config: TrainConfig, sha256: str) -> Path:
    """Where a run keeps its checkpoint: runs that are compared with one another differ in the seed alone."""
    return config.runs_dir / f"{experiment}-seed{config.seed}-{sha256[:6]}-{fingerprint(config)}.pt"


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

    After the last step the optimizers, half of the file or more, are left out. Raises UserError where the file cannot
    be written; the one before it is then still in its place.
    """
    content = {
        "weights": state.model.state_dict(),
        "optimizers": [each.state_dict()["state"] for each in state.optimizers] if state.step < config.steps else None,
        "step": state.step,
        "seconds": state.seconds,
        "evaluations": [asdict(evaluation) for evaluation in state.evaluations],
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "facts": facts,
    }
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        check_folder(path.parent)
        for left in path.parent.glob(f"{path.name}*.tmp"):  # by a process that was killed in the middle of this
            left.unlink(missing_ok=True)
        with aside.open("wb") as file:
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
    if isinstance(content, dict) and "optimizer" in content:  # written when there was but one
        one = content.pop("optimizer")
        content["optimizers"] = None if one is None else [one]
    if not _is_sound(content):
        raise UserError(f"{path} is not a checkpoint of this version of the project; train again")
    return content


def _is_sound(content: object) -> bool:
    """Whether all that `save_checkpoint` writes is there, of its type and in its range."""
    try:
        steps, facts = content["facts"]["steps"], content["facts"]
        evaluations, losses = content["evaluations"], [Evaluation(**row) for row in content["evaluations"]]
        return (
            all(isinstance(tensor, torch.Tensor) for tensor in content["weights"].values())
            and all(isinstance(moments, dict) for each in content["optimizers"] or [] for moments in each.values())
            and (content["optimizers"] is None) == (content["step"] == steps)
            and type(content["step"]) is int
            and 0 <= content["step"] <= steps
            and 0 <= float(content["seconds"]) < math.inf
            and all(type(row[name]) is kind for row in evaluations for name, kind in LOSSES.items())
            and all(math.isfinite(row.train_loss) and math.isfinite(row.val_loss) for row in losses)
            and all(type(facts[name]) is kind for name, kind in FACTS.items())
            and facts["run"].isprintable()
            and isinstance(content["config"], dict)
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return False


def _sync_folder(folder: Path) -> None:
    """Have the new name on disk as well; Windows does so by itself, and opens no folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
