"""Resuming a stopped run, and refusing any other."""

from __future__ import annotations

from pathlib import Path

from data import UserError
from training.checkpoint import as_saved, checkpoint_path, load_checkpoint
from training.config import TrainConfig, settings
from training.state import Evaluation, State

MUST_MATCH = {  # metadata that has to be equal, and its name in messages
    "rung": "rung",
    "seed": "seed",
    "corpus_sha256": "corpus",
    "alphabet": "vocabulary",
    "parameters": "number of parameters",
    "rung_code": "code of the rung",
    "shared_code": "shared code",
}
MAY_DIFFER = ("torch", "device", "processor", "threads")  # metadata that may differ, with a warning


def resume(path: Path, state: State, config: TrainConfig, metadata: dict) -> dict:
    """Set `state` to that of the checkpoint at `path`; returns the metadata of that run.

    config, metadata: of the run to resume. Raises UserError, with the difference, for a checkpoint of another run.
    """
    if not path.exists():
        raise UserError(f"--resume: there is no checkpoint {path}; leave out --resume to start again")
    content = load_checkpoint(path)
    if differences := _differences(content, config, metadata):
        raise UserError(
            f"--resume: {path} is of another run: {'; '.join(differences)}; "
            "to start again, delete that file and leave out --resume"
        )
    try:
        state.model.load_state_dict(content["weights"])
        for optimizer, moments in zip(state.optimizers, content["optimizers"] or [], strict=False):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        state.step, state.seconds = content["step"], content["seconds"]
        state.evaluations = [Evaluation(**evaluation) for evaluation in content["evaluations"]]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--resume: {path} does not fit this code: {reason}; "
            "to start again, delete that file and leave out --resume"
        ) from None
    return content["metadata"]


def metadata_before(rung: str, config: TrainConfig, sha256: str) -> dict | None:
    """The metadata of the run that `config` resumes; None if it resumes none, or there is none."""
    paths = [checkpoint_path(rung, config, sha256, finished=finished) for finished in (False, True)]
    return next((load_checkpoint(path)["metadata"] for path in paths if config.resume and path.exists()), None)


def what_differs(there: dict, here: dict) -> list[str]:
    """The allowed differences between two runs' metadata: "torch 2.12.0, and goes on with 2.13.0"."""
    return [f"{name} {there[name]}, and goes on with {here[name]}" for name in MAY_DIFFER if there[name] != here[name]]


def _differences(content: dict, config: TrainConfig, here: dict) -> list[str]:
    """How the run of a checkpoint differs from the run to resume: "dropout 0.2, here 0.1"."""
    there, names = content["metadata"], dict(MUST_MATCH)
    if config.precision != "auto":
        names["precision"] = "precision"
    found = [
        f"another {name}" if key == "alphabet" else f"{name} {there[key]}, here {here[key]}"
        for key, name in names.items()
        if there[key] != here[key]
    ]
    return found + [
        f"{name.replace('_', '-')} {content['config'].get(name)}, here {value}"
        for name, value in ((name, as_saved(getattr(config, name))) for name in settings(config))
        if content["config"].get(name) != value
    ]
