"""The settings of a run, which are also its flags."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from data import LOSS_CSV, UserError

RUNS_DIR = Path(__file__).resolve().parent.parent / "runs"

# Settings that do not change the result, or have their own column in the log. `config_hash` covers all others.
NOT_HASHED = frozenset(
    {"seed", "minutes", "preset", "eval_interval", "device", "threads", "precision", "corpus", "loss_csv"}
    | {"runs_dir", "resume", "skip_device_check", "prompt", "sample_length", "temperature", "top_k"}
)

# The allowed values of settings, by name. A rung of your own checks its new fields in its __post_init__.
RULES = {
    "1 or more": {"steps", "batch_size", "block_size", "eval_interval", "n_embd", "n_head", "n_layer"},
    "0 or more": {"seed", "warmup_steps", "sample_length", "length", "top_k"},
    "a finite number above 0": {"learning_rate"},
    "a finite number, 0 or more": {"minutes", "weight_decay", "temperature"},
    "at least 0 and below 1": {"beta2", "dropout"},
    "between 0 and 1": {"teacher_share"},
    "auto, or 1 or more": {"threads"},
}
HOLDS = {
    "1 or more": lambda value: 1 <= value < 2**63,
    "0 or more": lambda value: 0 <= value < 2**63,
    "a finite number above 0": lambda value: 0 < value < math.inf,
    "a finite number, 0 or more": lambda value: 0 <= value < math.inf,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "between 0 and 1": lambda value: 0 <= value <= 1,
    "auto, or 1 or more": lambda value: value == "auto" or 1 <= value < 2**31,
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings that every rung has. Raises UserError for a value that is not allowed."""

    holdout: bool = False  # validate on the last tenth of the train split, train on the rest: to choose settings
    steps: int = 5000  # updates of the weights
    minutes: float = 0.0  # train for this many minutes, instead of --steps; 0 is off
    seed: int = 0  # of the initial weights, the batches and the sample
    batch_size: int = 32  # sequences in a batch
    block_size: int = 8  # characters of context
    learning_rate: float = 3e-3  # with a schedule, its highest value
    weight_decay: float = 0.0  # of the linear layers' weights; 0, as the small rungs do not overfit
    beta2: float = 0.999  # AdamW's decay rate of the mean squared gradient
    warmup_steps: int = 0  # steps in which the learning rate rises from zero; at most a tenth of all steps
    schedule: Literal["constant", "linear"] = "constant"  # of the learning rate after the warm-up; linear falls to zero
    sampling: Literal["random", "epoch"] = "random"  # windows drawn at random, or each once an epoch, shuffled
    eval_interval: int = 500  # steps from one evaluation to the next; --minutes evaluates when there is time
    device: str = "auto"  # cpu, cuda or mps; auto takes cuda if it is there, else mps, else cpu
    threads: int | Literal["auto"] = "auto"  # CPU threads; auto takes the fastest number; it changes the last digits
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of matmuls; auto takes bf16 where it is faster, never on MPS
    corpus: str = "auto"  # a UTF-8 text file; auto: Tiny Shakespeare; pydoc: Python's own documentation
    loss_csv: Path = LOSS_CSV  # the log that each evaluation is appended to
    runs_dir: Path = RUNS_DIR  # where the checkpoint is saved, at every evaluation
    resume: bool = False  # go on with the stopped run that has these settings
    skip_device_check: bool = False  # train even if the device's results differ from the CPU's
    prompt: str = ""  # text that the sample at the end continues; empty is a line break
    sample_length: int = 400  # characters to sample at the end
    temperature: float = 1.0  # sampling temperature, which divides the logits; 0 takes the likeliest character
    top_k: int = 0  # sample among the k likeliest characters; 0 is all of them

    def __post_init__(self):
        check_ranges(self)
        if self.minutes and self.resume:
            raise UserError("--resume needs the number of steps of the stopped run: use --steps instead of --minutes")
        n_embd, n_head = getattr(self, "n_embd", 0), getattr(self, "n_head", 1)
        if n_embd % n_head:
            fitting = -(-n_embd // (2 * n_head)) * 2 * n_head  # an even number of channels a head, as rotary needs
            raise UserError(f"--n-embd {n_embd} is not divisible by --n-head {n_head}; try --n-embd {fitting}")

    @classmethod
    def from_preset(cls, preset: str | None):
        """The settings without any flag: the rung's own, or those of `preset`."""
        return cls()


def check_ranges(options: object) -> None:
    """Raises UserError for a field of `options`, a dataclass, that breaks the rule for its name."""
    for rule, names in RULES.items():
        for name in sorted(names & vars(options).keys()):
            value = getattr(options, name)
            if not HOLDS[rule](value):
                raise UserError(f"--{name.replace('_', '-')} is {value}; it has to be {rule}")


def settings(config: TrainConfig) -> dict:
    """The settings that shape a run's result, as plain values."""
    names = [field.name for field in fields(config) if field.name not in NOT_HASHED]
    return {name: _plain(getattr(config, name)) for name in names}


def _plain(value):
    """A path without its folder and seed: runs that learn from checkpoints of seeds 0 and 1 count as equal."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return re.sub(r"-seed\d+", "", value.stem) if isinstance(value, Path) else value


def config_hash(config: TrainConfig) -> str:
    """Eight hex digits, equal if two runs of a rung have the same `settings`."""
    return hashlib.sha256(json.dumps(settings(config), sort_keys=True).encode("utf-8")).hexdigest()[:8]


def changed_flags(config: TrainConfig) -> str:
    """The preset and the settings that differ from it and shape the result, as typed flags."""
    start, plain = config.from_preset(getattr(config, "preset", None)), type(config)()
    preset = ["--preset", config.preset] if settings(start) != settings(plain) else []
    return " ".join(preset + _differing(settings(config), settings(start)))


def all_flags(config: TrainConfig) -> list[str]:
    """The preset and every setting that differs from it, as typed words."""
    preset = getattr(config, "preset", None)
    chosen, start = vars(config) | {"preset": None}, vars(config.from_preset(preset)) | {"preset": None}
    return (["--preset", preset] if preset else []) + _differing(chosen, start)


def _differing(chosen: dict, start: dict) -> list[str]:
    return [word for name, value in chosen.items() if value != start[name] for word in _flag(name, value)]


def _flag(name: str, value) -> list[str]:
    typed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{typed}" if value else f"--no-{typed}"]
    if isinstance(value, tuple | list):
        return [f"--{typed}", *map(str, value)]
    return [f"--{typed}={value}"] if str(value).startswith("-") else [f"--{typed}", str(value)]
