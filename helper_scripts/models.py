"""Rungs as models: of a checkpoint, or of the settings that a row of the log names."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

from torch import nn

from data import CharTokenizer, UserError
from helper_scripts.results import RUNGS, check_rungs
from stages import LADDER
from training import TrainConfig
from training.checkpoint import load_checkpoint
from training.cli import parse
from training.state import Evaluation


@dataclass(frozen=True)
class Trained:
    """A model from a checkpoint, in evaluation mode and on the CPU, and what is known of it."""

    rung: str
    model: nn.Module
    config: TrainConfig
    tokenizer: CharTokenizer
    last: Evaluation


def rung_module(rung: str) -> ModuleType:
    return importlib.import_module(LADDER[RUNGS.index(rung)])


def config_of(label: str, **settings) -> TrainConfig:
    """The Config of a rung and its flags, as the log's labels put them: "residual --n-layer 1"; `settings` go over it.

    Raises UserError for a rung that is not there, and for flags that it does not have.
    """
    rung, *flags = label.split() or [""]
    check_rungs((rung,))
    config = parse(rung_module(rung).Config, description="", args=flags)
    return replace(config, **settings)


def load_model(path: Path) -> Trained:
    """Raises UserError for a file that is no checkpoint, or one of a rung that is not there, or is another by now."""
    content = load_checkpoint(path)
    rung, last = content["facts"]["experiment"], content["evaluations"][-1:]
    if rung not in RUNGS:
        raise UserError(f"{path} is of the rung {rung}, which the ladder does not name (stages/__init__.py)")
    if not last:
        raise UserError(f"{path} was saved before its first evaluation; go on with that run first (--resume)")
    module, tokenizer = rung_module(rung), CharTokenizer(content["facts"]["alphabet"])
    names = {field.name for field in fields(module.Config)} - {"loss_csv", "runs_dir"}  # plain strings in the file
    try:
        config = module.Config(**{name: value for name, value in content["config"].items() if name in names})
        model = module.LanguageModel(tokenizer.vocab_size, config)
        model.load_state_dict(content["weights"])
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit {rung} as it is now: {reason}; train it again") from None
    return Trained(rung, model.eval(), config, tokenizer, Evaluation(**last[0]))


def latest_checkpoint(runs_dir: Path, rung: str = "*") -> Path:
    """The one of `rung`, or of all, that was written last. Raises UserError where there is none."""
    files = sorted(runs_dir.glob(f"{rung}-seed*.pt"), key=lambda path: path.stat().st_mtime)
    if not files:
        which = "" if rung == "*" else f" of {rung}"
        raise UserError(f"there is no checkpoint{which} in {runs_dir}; train a rung first, or name another --runs-dir")
    return files[-1]
