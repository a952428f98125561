"""Models of rungs: from a checkpoint, or from the settings in a row of the log."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from data import CharTokenizer, UserError
from data.files import printable
from stages import LADDER
from training import ScaledConfig, TrainConfig
from training.checkpoint import load_checkpoint
from training.cli import parse
from training.config import NOT_HASHED
from training.presets import Preset
from training.provenance import ROOT
from training.run import count_parameters
from training.state import State

RUNGS = tuple(module.rpartition(".")[2] for module in LADDER)  # as the log names them: "residual", "gpt"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, as `load_model` returns it."""

    path: Path
    model: nn.Module  # in evaluation mode and on the CPU
    config: TrainConfig
    tokenizer: CharTokenizer
    metadata: dict  # the run's name, its corpus and so on (training/record.py)
    seconds: float  # that it was trained for
    finished: bool = True  # whether it was trained to its last step


def check_rungs(*names: str) -> None:
    """Raises UserError for names that the ladder does not have."""
    unknown = [name for name in names if name not in RUNGS]
    if unknown:
        raise UserError(f"there is no rung {', '.join(unknown)}; the ladder has {', '.join(RUNGS)}")


def rung_path(rung: str) -> Path:
    return ROOT / f"{LADDER[RUNGS.index(rung)].replace('.', '/')}.py"


def rung_module(rung: str) -> ModuleType:
    return importlib.import_module(LADDER[RUNGS.index(rung)])


def rungs_of(preset: Preset | None, holdout: bool = False) -> tuple[str, ...]:
    """Labels of the rungs that a preset is for, rungs 8 and up; without one, of the small rungs.

    A rung whose file cannot be imported, say while it is being edited, is in neither.
    """
    types = {rung: _from_module(rung, "Config") for rung in RUNGS}
    rungs = [rung for rung in RUNGS if types[rung] and issubclass(types[rung], ScaledConfig) == bool(preset)]
    return tuple(join(rung, start_of(preset, holdout)) for rung in rungs)


def start_of(preset: Preset | None, holdout: bool) -> str:
    """The flags that a preset and --holdout put before all others, as the log has them."""
    flags = [f"--preset {preset}"] if preset else []
    return " ".join([*flags, "--holdout"] if holdout else flags)


def join(label: str, flags: str) -> str:
    """`label` with `flags` before its own."""
    rung, _, own = label.partition(" ")
    return " ".join(filter(None, (rung, flags, own)))


def rung_before(label: str, order: list[str]) -> str | None:
    """The label of `order` (labels in ladder order) that a label is compared with; None if there is none.

    A rung with flags: itself without them. Otherwise, with the same flags, the rung that it names as AFTER, or the
    nearest earlier one that names none.
    """
    rung, _, flags = label.partition(" ")
    if flags and rung in order:
        return rung
    if after := _from_module(rung, "AFTER"):
        after = join(after.rpartition(".")[2], flags)
        return after if after in order else None
    below = [other for other in order[: order.index(label)] if other.partition(" ")[2] == flags]
    return next((other for other in reversed(below) if not is_beside(other.split()[0])), None)


def is_beside(rung: str) -> bool:
    """Whether a rung stands beside the ladder: it names the rung that it is compared with."""
    return _from_module(rung, "AFTER") is not None


def _from_module(rung: str, name: str):
    """The variable `name` of a rung's file; None if it has none, or cannot be imported."""
    try:
        return getattr(rung_module(rung), name, None)
    except Exception:
        return None


def config_of(label: str, **settings) -> TrainConfig:
    """The Config of a rung and its flags, as the log's labels put them: "residual --n-layer 1"; `settings` go over it.

    Raises UserError for a rung that is not there, and for flags that are not settings of it that shape a result.
    """
    rung, *flags = label.split() or [""]
    check_rungs(rung)
    config_type = rung_module(rung).Config
    allowed = {field.name for field in fields(config_type)} - NOT_HASHED | {"precision", "preset"}
    for flag in (flag for flag in flags if flag.startswith("--") or flag == "-h"):
        name = flag.strip("-").partition("=")[0].removeprefix("no-").replace("-", "_")
        if name not in allowed:
            raise UserError(f"{label}: {flag} is no setting that shapes a result; take it out of the quotes")
    try:
        return replace(parse(config_type, description="", args=flags), **settings)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None


def training_flops(label: str, parameters: int) -> float:
    """Floating-point operations of training on one character: forward, backward and its share of the update.

    Those of matmuls and convolutions; an update has some where Muon makes it. parameters: those of the model as it was
    logged, which tell the size of the vocabulary. Raises UserError, with the reason, if they cannot be counted: no
    vocabulary gives that number of parameters, or the rung's file does not run, or not on shapes only.
    """
    try:
        config, module = config_of(label), rung_module(label.split()[0])

        def model(vocab_size: int) -> nn.Module:
            with torch.device("meta"):  # shapes without numbers
                return module.LanguageModel(vocab_size, config)

        one, two, three = (count_parameters(model(size)) for size in (1, 2, 3))

        def expected(size: int) -> int:  # a layer grows with the vocabulary, a table of it by itself with its square
            return one + (size - 1) * (two - one) + (size - 1) * (size - 2) // 2 * (three - 2 * two + one)

        made = model(1 + bisect.bisect_left(range(1, 0x10FFFF), parameters, key=expected))
        if count_parameters(made) != parameters:
            raise UserError(f"the rung's code now gives another number of parameters than the log's {parameters:,}")
        with flop_counter() as counter:
            made(torch.zeros(1, config.block_size, dtype=torch.long, device="meta")).sum().backward()
        with flop_counter() as update_counter:
            for optimizer in State.at_start(made, config).optimizers:
                for group in optimizer.param_groups:
                    group["fused"] = False  # a fused optimizer needs numbers
                optimizer.step()
        update = update_counter.get_total_flops() / config.batch_size
        return (counter.get_total_flops() + update) / config.block_size
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{type(error).__name__}: {one_line(error)}") from None


def flop_counter() -> FlopCounterMode:
    """Counts the floating-point operations of matmuls and convolutions: `with flop_counter() as counter`.

    As torch's own counter, but that one ignores the groups of a convolution in its backward pass: for the weights of
    ShortConv, with a group for each channel, it counts C times too many.
    """

    def convolution_backward(grad_out, x, weight, *args, out_shape, **kwargs):  # called with shapes
        *_, (of_input, of_weight, _) = args
        return (of_input + of_weight) * conv_flop_count(x, weight, grad_out)

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward})


def load_models(runs_dir: Path, names: Sequence[str]) -> list[Trained]:
    """The models that a user names, to be mixed; without a name, the latest (`find_checkpoint`).

    Raises UserError also for one that is named twice, and for two with different vocabularies.
    """
    paths = [find_checkpoint(runs_dir, name) for name in names or [""]]
    for i, path in enumerate(paths):
        if path.resolve() in (earlier.resolve() for earlier in paths[:i]):
            raise UserError(f"{path} is named twice; of two runs of a rung, name the two checkpoints")
    first, *others = models = [load_model(path) for path in paths]
    for other in others:
        if other.tokenizer.chars != first.tokenizer.chars:
            raise UserError(f"{first.path} and {other.path} have different vocabularies, so they are no ensemble")
    return models


def load_model(path: Path) -> Trained:
    """The model of a checkpoint.

    Raises UserError for a file that is no checkpoint, and for a checkpoint of a rung that is missing or has changed.
    """
    content = load_checkpoint(path)
    rung = content["metadata"]["rung"]
    if rung not in RUNGS:
        raise UserError(f"{path} is of the rung {rung}, which the ladder does not name (stages/__init__.py)")
    try:
        module, tokenizer = rung_module(rung), CharTokenizer(content["metadata"]["alphabet"])
        names = {field.name for field in fields(module.Config)} - {"loss_csv", "runs_dir"}
        config = module.Config(**{name: value for name, value in content["config"].items() if name in names})
        model = module.LanguageModel(tokenizer.vocab_size, config)
        model.load_state_dict(content["weights"])
    except Exception as error:
        raise UserError(f"{path} does not fit {rung} as it is now: {one_line(error)}; train it again") from None
    finished = content["step"] == content["metadata"]["steps"]
    return Trained(path, model.eval(), config, tokenizer, content["metadata"], content["seconds"], finished)


def one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:200])


def find_checkpoint(runs_dir: Path, name: str) -> Path:
    """The file that a user means by a rung (its latest run, a finished one if there is one), "" (any rung) or a path.

    Raises UserError for a rung without a checkpoint, and for one that the ladder does not name.
    """
    if name in ("", *RUNGS):
        files = list(runs_dir.glob(f"{name or '*'}-seed*.pt"))
        if not files:
            raise UserError(f"there is no checkpoint{name and f' of {name}'} in {runs_dir}; train a rung first")
        return max(files, key=lambda path: (not path.name.endswith(".partial.pt"), path.stat().st_mtime))
    if not Path(name).exists():
        if (ROOT / "stages" / f"{name}.py").exists():
            raise UserError(f'{name} is not on the ladder; add "stages.{name}" to stages/__init__.py first')
        if not Path(name).suffix:
            check_rungs(name)
    return Path(name)
