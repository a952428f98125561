"""The settings of a run, which are also its flags."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from data import LOSS_CSV, UserError

RUNS_DIR = Path(__file__).resolve().parent.parent / "runs"

# Settings that say where a run happens and what it leaves behind, or that have a column of their own in the log.
# All others shape its result, and so they make up the hash of its configuration.
NOT_COMPARED = frozenset(
    {"seed", "minutes", "recipe", "eval_interval", "device", "precision", "corpus", "loss_csv", "runs_dir"}
    | {"resume", "skip_device_check", "prompt", "sample_length", "temperature", "top_k"}
)

# Settings that are younger than the log's first rows, and what they were until then. At that they are left out of the
# hash, so that earlier rows remain comparable and earlier runs can go on.
CAME_LATER = {"without_replacement": False}

MAY_BE_ZERO = frozenset(
    {"steps", "minutes", "seed", "warmup_steps", "weight_decay", "beta2", "dropout"}
    | {"sample_length", "temperature", "top_k"}
)
BELOW_ONE = frozenset({"beta2", "dropout"})


@dataclass(frozen=True)
class TrainConfig:
    """Settings that every rung has. Raises UserError for a value that cannot be."""

    steps: int = 5000  # updates of the weights
    minutes: float = 0.0  # take as many steps as fit into so much time, whatever --steps says; 0 is off
    seed: int = 0  # of the initial weights, the batches and the sample
    batch_size: int = 32  # sequences in a batch
    block_size: int = 8  # characters of context
    learning_rate: float = 1e-3  # how far a step moves the weights, at its highest
    weight_decay: float = 0.0  # how strongly the weights are pulled towards zero; small models never get to overfit
    beta2: float = 0.999  # AdamW's memory of squared gradients
    warmup_steps: int = 0  # steps over which the learning rate rises from zero, a tenth of all at most
    decay: bool = False  # let the learning rate fall, after the warm-up, linearly to zero at the last step
    without_replacement: bool = False  # read no window of the text again before all of it has been read
    eval_interval: int = 500  # steps from one evaluation to the next
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the products; auto takes the faster one
    corpus: str = "auto"  # a UTF-8 text file; auto is Tiny Shakespeare, pydoc the offline text
    loss_csv: Path = LOSS_CSV  # the log that each evaluation joins
    runs_dir: Path = RUNS_DIR  # where the run is saved, at every evaluation
    resume: bool = False  # go on with the run of these settings that was stopped
    skip_device_check: bool = False  # train on a device that computes something else than the CPU
    prompt: str = ""  # text that the sample at the end continues; empty is a line break
    sample_length: int = 400  # characters to sample at the end
    temperature: float = 1.0  # of the sample: below 1 bolder, 0 always the likeliest character
    top_k: int = 0  # sample among the k likeliest characters; 0 is all of them

    def __post_init__(self):
        for field in fields(self):
            _check_range(field.name, getattr(self, field.name))
        if self.minutes and self.resume:
            raise UserError("--resume goes on to the steps that a run was given: name them with --steps, not --minutes")
        n_embd, n_head = getattr(self, "n_embd", 0), getattr(self, "n_head", 1)
        if n_embd % n_head:
            raise UserError(
                f"--n-head {n_head} does not divide --n-embd {n_embd}: each head takes an equal share of the width; "
                f"try --n-embd {max(n_embd // n_head, 1) * n_head}"
            )
        if getattr(self, "PAIRS", False) and n_embd // n_head % 2:
            raise UserError(
                f"--n-embd {n_embd} gives each of {n_head} heads {n_embd // n_head} numbers, which cannot be paired; "
                f"try --n-embd {n_embd + n_head}"
            )


def _check_range(name: str, value) -> None:
    """Every whole number is a size, 1 or more, and every other one positive, but for those named here."""
    if type(value) not in (int, float):  # bool, which Python counts among the ints, is neither
        return
    may_be_zero = name in MAY_BE_ZERO
    below = 1 if name in BELOW_ONE else 2**63 if type(value) is int else float("inf")
    smallest = "0 or more" if may_be_zero else "1 or more" if type(value) is int else "more than 0"
    if not (0 <= value < below and (value or may_be_zero)):  # so that nan fails as well
        bound = f" and below {below}" if below != float("inf") else ""
        raise UserError(f"--{name.replace('_', '-')} is {value}; it has to be {smallest}{bound}")


def fingerprint(config: TrainConfig) -> str:
    """Eight hex digits that are equal where two configurations of a rung may be compared."""
    younger = CAME_LATER.items()
    settings = json.dumps(
        {name: value for name, value in compared(config).items() if (name, value) not in younger}, sort_keys=True
    )
    return hashlib.sha256(settings.encode("utf-8")).hexdigest()[:8]


def changed_flags(config: TrainConfig) -> str:
    """The settings that shape the result and are not the rung's own, or its recipe's, as they would be typed."""
    start = starting_point(config)
    recipe = ["--recipe", config.recipe] if compared(start) != compared(type(config)()) else []
    own = compared(start)
    changed = [word for name, value in compared(config).items() if value != own[name] for word in _flag(name, value)]
    return " ".join([*recipe, *changed])


def all_flags(config: TrainConfig) -> list[str]:
    """Every setting that is not the rung's own, or its recipe's, word for word as it would be typed."""
    own = starting_point(config)
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    return [word for name, value in settings.items() if value != getattr(own, name) for word in _flag(name, value)]


def starting_point(config: TrainConfig) -> TrainConfig:
    """What was there before flags were typed: the rung's own settings, or its recipe's in their place."""
    return type(config)(**getattr(config, "RECIPES", {}).get(getattr(config, "recipe", None), {}))


def _flag(name: str, value) -> list[str]:
    typed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{typed}" if value else f"--no-{typed}"]
    return [f"--{typed}={value}"] if str(value).startswith("-") else [f"--{typed}", str(value)]


def compared(config: TrainConfig) -> dict:
    """The settings that shape a run's result: they are equal wherever two runs may be compared."""
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in NOT_COMPARED}
