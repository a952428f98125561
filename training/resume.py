"""Going on with a run that was stopped, and with no other."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from data import UserError
from training.checkpoint import load_checkpoint
from training.config import CAME_LATER, TrainConfig, compared
from training.state import Evaluation, State

SAME = {  # facts that have to be those of the checkpoint, and what a person calls them
    "experiment": "rung",
    "seed": "seed",
    "corpus_sha256": "corpus",
    "alphabet": "characters",
    "parameters": "number of parameters",
}

ADAMW_REMEMBERS = ("exp_avg", "exp_avg_sq", "step")


def resume(path: Path, state: State, config: TrainConfig, facts: dict) -> dict:
    """Put `state` where the checkpoint at `path` left it; returns that run's own facts.

    config, facts: of the run that is to go on. Raises UserError, naming the difference, for a checkpoint of another.
    """
    if not path.exists():
        raise UserError(_nothing_to_resume(path, config, facts))
    content = load_checkpoint(path)
    if differences := _differences(content, config, facts):
        raise UserError(
            f"--resume: {path} is of another run: {'; '.join(differences)}; leave out --resume to start anew"
        )
    try:
        state.model.load_state_dict(content["weights"])
        if content["optimizers"] is not None:
            for optimizer, moments in zip(state.optimizers, content["optimizers"], strict=True):
                _put_back(optimizer, moments, content["step"])
        state.step, state.seconds = content["step"], content["seconds"]
        state.evaluations = [Evaluation(**evaluation) for evaluation in content["evaluations"]]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--resume: {path} does not fit this code: {reason}; leave out --resume to start anew"
        ) from None
    return content["facts"]


def _put_back(optimizer: torch.optim.Optimizer, moments: dict, step: int) -> None:
    """What it remembers of each parameter, in the optimizer's own order. Raises ValueError for what does not fit.

    An optimizer other than AdamW names what that is as its REMEMBERS.
    """
    names = getattr(optimizer, "REMEMBERS", ADAMW_REMEMBERS)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters if step else []):  # before the first step it remembers nothing
        shapes = {name: tuple(moments[number][name].shape) for name in names}
        if shapes != {name: () if name == "step" else tuple(parameter.shape) for name in names}:
            raise ValueError(f"the optimizer's numbers of parameter {number} have the shapes {shapes}")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def make_way(path: Path, seconds: float) -> None:
    """Let a run start anew at `path`, where more than so many seconds of another may be: lesser ones are replaced.

    A finished one is kept under another name, and so is what cannot be read, which may be one of another version.
    Raises UserError for one that is not finished.
    """
    if not path.exists():
        return
    try:
        content = load_checkpoint(path)
    except UserError:
        what = "what cannot be read as a checkpoint of this run"
    else:
        if content["seconds"] <= seconds:
            return
        took = f"after {content['seconds'] / 60:.0f} minutes"
        if content["optimizers"] is not None:
            raise UserError(
                f"{path} holds this run, stopped at step {content['step']:,} {took}; "
                "add --resume to go on with it, or delete that file to start anew"
            )
        what = f"the model of the same run, finished {took},"
    asides = (path.with_suffix(f".before{number}.pt") for number in itertools.count(1))
    aside = next(aside for aside in asides if not aside.exists())
    path.replace(aside)
    print(f"{what} is kept as {aside}", flush=True)


def unfinished(path: Path) -> dict | None:
    """The checkpoint at `path`, if it is one of a run that was stopped."""
    try:
        content = load_checkpoint(path)
    except UserError:  # none, or nothing that could be resumed
        return None
    return content if content["optimizers"] is not None else None


def _differences(content: dict, config: TrainConfig, facts: dict) -> list[str]:
    """What sets the run of a checkpoint apart from the one that is to go on: "dropout 0.2, here 0.1"."""
    there, here = content["facts"], facts
    found = [
        f"another set of {name}" if key == "alphabet" else f"{name} {there.get(key)}, here {here[key]}"
        for key, name in SAME.items()
        if there.get(key) != here[key]
    ]
    settings = CAME_LATER | content["config"]
    return found + [
        f"{name.replace('_', '-')} {settings.get(name)}, here {value}"
        for name, value in compared(config).items()
        if settings.get(name) != value
    ]


def _nothing_to_resume(path: Path, config: TrainConfig, facts: dict) -> str:
    """Names the nearest there is, for a run is often looked for with a flag too many or too few."""
    nearest: list[str] = []
    for other in sorted(path.parent.glob(f"{facts['experiment']}-seed*.pt")):
        try:
            differences = _differences(load_checkpoint(other), config, facts)
        except UserError:
            continue
        if not nearest or len(differences) < len(nearest):
            nearest = differences
    more = f" and {len(nearest) - 3} other differences" if len(nearest) > 3 else ""
    hint = f"; the nearest there is has {'; '.join(nearest[:3])}{more}" if nearest else ""
    return f"--resume: there is no checkpoint {path}{hint}; leave out --resume to start anew"
