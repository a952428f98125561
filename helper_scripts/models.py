"""Rungs as models: of a checkpoint, or of the settings that a row of the log names."""

from __future__ import annotations

import bisect
import importlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import CharTokenizer, UserError
from helper_scripts.results import BUDGETS, RUNGS, Budget, check_rungs
from stages import LADDER
from training import TrainConfig
from training.checkpoint import load_checkpoint
from training.cli import parse
from training.config import NOT_COMPARED, changed_flags, starting_point
from training.state import Evaluation, State


@dataclass(frozen=True)
class Trained:
    """A model from a checkpoint, in evaluation mode and on the CPU, and what is known of it."""

    rung: str
    model: nn.Module
    config: TrainConfig
    tokenizer: CharTokenizer
    corpus: str
    corpus_sha256: str  # its first 12 digits
    last: Evaluation


def rung_module(rung: str) -> ModuleType:
    return importlib.import_module(LADDER[RUNGS.index(rung)])


def rungs_of(budget: Budget) -> tuple[str, ...]:
    """Labels of what a budget is for: the small rungs in their own settings, or the scaled-up ones in given ones."""
    scaled = budget != "own"
    rungs = [rung for rung in RUNGS if hasattr(rung_module(rung).Config, "RECIPES") == scaled]
    return tuple(f"{rung} {BUDGETS[budget]}".strip() for rung in rungs)


def at_budget(label: str, budget: Budget) -> str:
    """A rung in the settings of a budget, over which its own flags go. Raises UserError where it has no such."""
    rung, _, flags = label.partition(" ")
    there = [name.split()[0] for name in rungs_of(budget)]
    if budget != "own" and rung in RUNGS and rung not in there:
        raise UserError(f"{rung} is not trained at the {budget} budget; that is for {', '.join(there)}")
    return " ".join(filter(None, (rung, BUDGETS[budget], flags)))


def rung_before(label: str, order: list[str]) -> str | None:
    """What of `order`, labels in ladder order, a label is held against.

    A rung with flags: itself without them. Otherwise the rung that it names as AFTER, or else the nearest below it,
    with the same flags. None where there is no such.
    """
    rung, _, flags = label.partition(" ")
    if flags and rung in order:
        return rung
    after = f"{getattr(rung_module(rung), 'AFTER', '').rpartition('.')[2]} {flags}".rstrip()
    below = [other for other in order[: order.index(label)] if other.partition(" ")[2] == flags]
    return after if after in below else (below or [None])[-1]


def config_of(label: str, **settings) -> TrainConfig:
    """The Config of a rung and its flags, as the log's labels put them: "residual --n-layer 1"; `settings` go over it.

    Raises UserError for a rung that is not there, and for flags that it does not have.
    """
    rung, *flags = label.split() or [""]
    check_rungs((rung,))
    config_type = rung_module(rung).Config
    try:
        config = parse(config_type, description="", args=flags)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    own = starting_point(config)
    for name in NOT_COMPARED - {"precision", "recipe"}:
        if getattr(config, name) != getattr(own, name):
            raise UserError(
                f"{label}: --{name.replace('_', '-')} cannot be one rung's alone; take it out of the quotes"
            )
    return replace(config, **settings)


def as_logged(label: str) -> str:
    """A rung and its flags as the log's labels put them, in whatever order they were typed: 3e-3 is 0.003 there.

    What this code cannot make sense of stays as it is, for it may be of a rung or a setting that is gone.
    """
    try:
        return f"{label.partition(' ')[0]} {changed_flags(config_of(label))}".strip()
    except UserError:
        return label


def training_flops(label: str, parameters: int) -> float | None:
    """Floating-point operations of training on one character: forward, backward and its share of the update.

    As torch counts them, which is products alone; an update has some where Muon makes it.

    parameters: those of the model as it was logged, which tell the size of the alphabet. None where no alphabet gives
    that number, or there are no such flags: the rung is another by now. None too where a model cannot be counted so.
    """
    try:
        return _training_flops(config_of(label), rung_module(label.split()[0]), parameters)
    except (UserError, RuntimeError, NotImplementedError):
        return None


def _training_flops(config: TrainConfig, module: ModuleType, parameters: int) -> float | None:
    def model(vocab_size: int) -> nn.Module:
        with torch.device("meta"):  # shapes without numbers
            return module.LanguageModel(vocab_size, config)

    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    one, two, three = count(model(1)), count(model(2)), count(model(3))

    def expected(vocab_size: int) -> int:  # a layer grows with the alphabet, a table of it by itself with its square
        more = vocab_size - 1
        return one + more * (two - one) + more * (more - 1) // 2 * (three - 2 * two + one)

    vocab_size = 1 + bisect.bisect_left(range(1, 0x10FFFF), parameters, key=expected)
    made = model(vocab_size)
    if count(made) != parameters:
        return None
    with FlopCounterMode(display=False) as counter:
        made(torch.zeros(1, config.block_size, dtype=torch.long, device="meta")).sum().backward()
    with FlopCounterMode(display=False) as update_counter:
        for optimizer in State.at_start(made, config).optimizers:
            for group in optimizer.param_groups:
                group["fused"] = False  # that takes numbers
            optimizer.step()
    update = update_counter.get_total_flops() / config.batch_size
    return (counter.get_total_flops() + update) / config.block_size


def load_model(path: Path) -> Trained:
    """Raises UserError for a file that is no checkpoint, or one of a rung that is not there, or is another by now."""
    content = load_checkpoint(path)
    rung, last = content["facts"]["experiment"], content["evaluations"][-1:]
    if rung not in RUNGS:
        raise UserError(f"{path} is of the rung {rung}, which the ladder does not name (stages/__init__.py)")
    if not last:
        raise UserError(f"{path} was saved before its first evaluation; go on with that run first (--resume)")
    module, facts = rung_module(rung), content["facts"]
    tokenizer = CharTokenizer(facts["alphabet"])
    names = {field.name for field in fields(module.Config)} - {"loss_csv", "runs_dir"}  # plain strings in the file
    try:
        config = module.Config(**{name: value for name, value in content["config"].items() if name in names})
        model = module.LanguageModel(tokenizer.vocab_size, config)
        model.load_state_dict(content["weights"])
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit {rung} as it is now: {reason}; train it again") from None
    text = (str(facts.get("corpus")), facts["corpus_sha256"])
    return Trained(rung, model.eval(), config, tokenizer, *text, Evaluation(**last[0]))


def checkpoints(runs_dir: Path, rung: str = "*") -> list[Path]:
    """Those of `rung`, or of all, the latest last."""
    return sorted(runs_dir.glob(f"{rung}-seed*.pt"), key=lambda path: path.stat().st_mtime)


def latest_checkpoint(runs_dir: Path, rung: str = "*") -> Path:
    """The one of `rung`, or of all, that was written last. Raises UserError where there is none."""
    files = checkpoints(runs_dir, rung)
    if not files:
        which = "" if rung == "*" else f" of {rung}"
        raise UserError(f"there is no checkpoint{which} in {runs_dir}; train a rung first, or name another --runs-dir")
    return files[-1]


def find_checkpoint(runs_dir: Path, name: str) -> Path:
    """What a user names: a rung, for its latest one; nothing, for the latest of all; or a file."""
    return latest_checkpoint(runs_dir, name or "*") if name in ("", *RUNGS) else Path(name)
