"""The settings of rungs 8 and up, and the presets that can replace them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from data import UserError
from training.config import TrainConfig

Preset = Literal["lecture", "laptop", "quick", "epochs"]

PRESETS: dict[Preset, dict] = {
    "lecture": {  # the hyperparameters of the lecture's gpt.py
        "steps": 5000,
        "batch_size": 64,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "beta2": 0.999,
        "warmup_steps": 0,
        "schedule": "constant",
        "sampling": "random",
        "eval_interval": 500,
    },
    "laptop": {  # one to three minutes on one core: for several seeds of every rung
        "steps": 1000,
        "block_size": 128,
        "learning_rate": 3e-3,  # some rungs have another (laptop_learning_rate)
        "weight_decay": 0.1,
        "warmup_steps": 100,
        "sampling": "random",
        "eval_interval": 100,
        "n_embd": 128,
        "n_head": 4,
        "n_layer": 4,
        "dropout": 0.0,
    },
    "quick": {  # the lowest loss in a few minutes: two epochs of Tiny Shakespeare
        "steps": 1000,
        "learning_rate": 4e-3,
        "weight_decay": 0.1,
        "warmup_steps": 50,
        "eval_interval": 500,
        "n_embd": 160,
        "n_head": 2,
        "n_layer": 6,
        "dropout": 0.0,
    },
    "epochs": {  # a small model that trains for four epochs: what helps when text is scarce
        "steps": 1960,
        "learning_rate": 4e-3,
        "weight_decay": 0.1,
        "warmup_steps": 50,
        "eval_interval": 490,
        "n_embd": 128,
        "n_head": 2,
        "n_layer": 4,
        "dropout": 0.0,
    },
}


@dataclass(frozen=True)
class ScaledConfig(TrainConfig):
    """Settings of rungs 8 and up. Raises UserError for a value that is not allowed."""

    steps: int = 5880  # updates of the weights; 12 epochs of Tiny Shakespeare are 5,880
    batch_size: int = 8  # sequences in a batch
    block_size: int = 256  # characters of context
    learning_rate: float = 1e-3  # the highest value of the schedule
    weight_decay: float = 0.4  # of the linear layers' weights
    beta2: float = 0.99  # AdamW's decay rate of the mean squared gradient
    warmup_steps: int = 200  # steps in which the learning rate rises from zero; at most a tenth of all steps
    schedule: Literal["constant", "linear"] = "linear"  # of the learning rate after the warm-up; linear falls to zero
    sampling: Literal["random", "epoch"] = "epoch"  # windows drawn at random, or each once an epoch, shuffled
    eval_interval: int = 588  # steps from one evaluation to the next; --minutes evaluates when there is time
    n_embd: int = 384  # channels of the residual stream
    n_head: int = 6  # attention heads, of n_embd / n_head channels each
    n_layer: int = 6  # blocks
    dropout: float = 0.2  # probability of dropping an element in training; by default, --minutes chooses it
    small_for_minutes: ClassVar[bool] = False  # whether --minutes may train a smaller model if time is short
    laptop_learning_rate: ClassVar[float] = PRESETS["laptop"]["learning_rate"]  # of the rung at that preset
    preset: Preset | None = None  # settings to start from instead of the rung's own; other flags override them

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd // self.n_head % 2:  # rotary positions rotate pairs of channels
            raise UserError(
                f"--n-embd {self.n_embd} gives each of {self.n_head} heads {self.n_embd // self.n_head} channels, "
                f"an odd number; try --n-embd {self.n_embd + self.n_head}"
            )

    @classmethod
    def from_preset(cls, preset: str | None):
        if preset is None:
            return cls()
        own = {"learning_rate": cls.laptop_learning_rate} if preset == "laptop" else {}
        return cls(**PRESETS[preset] | own, preset=preset)
