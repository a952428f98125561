"""Write the generated parts of notes.md: results from the loss log, shapes from a training step, diffs of rungs.

Each part is between two lines, such as <!-- result bigram: begin --> and <!-- result bigram: end -->. Rungs 1 to 7 are
at their own settings, rungs 8 and up at the laptop preset.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from data import LOSS_CSV, Corpus, UserError, load_corpus
from data.sources import TINY_SHAKESPEARE
from helper_scripts.compare import change
from helper_scripts.ladder_table import markdown, mean_and_spread
from helper_scripts.markers import write_between_markers
from helper_scripts.models import RUNGS, rung_before, rung_module, rung_path
from helper_scripts.results import Results, Selection, load_results
from training import ScaledConfig, TrainConfig
from training.cli import errors_in_one_line, parse
from training.hooks import after_update, loss_of
from training.optimizers import make_optimizers
from training.provenance import ROOT

PRESET = "laptop"
SIZES = {"batch_size": 3, "block_size": 11, "n_embd": 60, "n_head": 6, "n_layer": 7}  # no two dimensions are equal
LETTERS = {
    3: "B",
    11: "T",
    33: "B T",
    14: "T + 3",
    60: "C",
    180: "3C",
    240: "4C",
    160: "8C/3",
    6: "H",
    10: "D",
    5: "D/2",
    7: "L",
    21: "3L",
}


@dataclass(frozen=True)
class Chapter:
    """shapes: what the table has, a module by its name in the model ("attention.qkv"; "" is the model itself), or a
    variable as it is when its function returns ("SelfAttention.forward q"). diff: those of LESSON that are shown.
    """

    shapes: tuple[str, ...]
    diff: tuple[str, ...] = ()


def _attention(*names: str) -> tuple[str, ...]:
    return tuple(f"SelfAttention.forward {name}" for name in names)


CHAPTERS = {
    "bigram": Chapter(shapes=("token_embedding",)),
    "self_attention": Chapter(
        shapes=(
            "token_embedding",
            "position_embedding",
            "attention.qkv",
            *_attention("q", "k", "v", "scores", "weights"),
            "attention",
            "lm_head",
        ),
        diff=("SelfAttention", "LanguageModel.forward"),
    ),
    "multi_head": Chapter(
        shapes=("attention.qkv", *_attention("q", "k", "v", "scores", "weights", "x"), "attention.proj"),
        diff=("SelfAttention.__init__", "SelfAttention.forward"),
    ),
    "feed_forward": Chapter(
        shapes=("blocks.0.attention", "blocks.0.feed_forward.net.0", "blocks.0.feed_forward.net.2", "blocks.0"),
        diff=("FeedForward", "Block"),
    ),
    "residual": Chapter(
        shapes=("blocks.0.attention", "blocks.0.feed_forward", "blocks.0", "blocks.1", "blocks.2"),
        diff=("Config", "Block.forward"),
    ),
    "post_norm": Chapter(
        shapes=("blocks.0.attention", "blocks.0.norm1", "blocks.0.feed_forward", "blocks.0.norm2"),
        diff=("Block.__init__", "Block.forward"),
    ),
    "pre_norm": Chapter(
        shapes=("blocks.0.norm1", "blocks.0.attention", "blocks.0.norm2", "blocks.0.feed_forward", "final_norm"),
        diff=("Block.forward", "LanguageModel.__init__", "LanguageModel.forward"),
    ),
    "gpt": Chapter(
        shapes=("dropout", "blocks.0.attention.qkv", *_attention("q", "scores"), "blocks.0", "blocks.3", "lm_head"),
        diff=("Config", "LanguageModel.init_weights"),
    ),
    "rotary": Chapter(
        shapes=("LanguageModel.forward cos", "LanguageModel.forward sin", "apply_rotary a", *_attention("q", "k")),
        diff=("apply_rotary", "SelfAttention.forward"),
    ),
    "rms_norm": Chapter(
        shapes=("blocks.0.norm1", "blocks.0.attention.proj", "blocks.0.feed_forward.net.0", "final_norm"),
        diff=("FeedForward.__init__", "Block.__init__"),
    ),
    "qk_norm": Chapter(
        shapes=("blocks.0.attention.q_norm", "blocks.0.attention.k_norm", *_attention("q", "k", "scores")),
        diff=("SelfAttention.__init__", "SelfAttention.forward"),
    ),
    "swiglu": Chapter(
        shapes=tuple(f"blocks.0.feed_forward.{name}" for name in ("gate", "up", "down")),
        diff=("FeedForward.__init__", "FeedForward.forward"),
    ),
    "muon": Chapter(
        shapes=("newton_schulz x", "newton_schulz gram", "Muon.step matrix"),
        diff=("newton_schulz",),
    ),
    "value_residual": Chapter(
        shapes=_attention("v", "first_values", "scores", "x"),
        diff=("SelfAttention.forward", "Block.forward"),
    ),
    "modern": Chapter(
        shapes=("blocks.0.conv1", "ShortConv.forward x", "blocks.0.conv1.conv", "blocks.0.attention"),
        diff=("ShortConv", "Block.forward"),
    ),
    "previous_token": Chapter(
        shapes=tuple(f"add_previous_token_heads {name}" for name in ("qkv", "queries", "frequencies", "rotations")),
        diff=("add_previous_token_heads", "LanguageModel.init_weights"),
    ),
    "averaging": Chapter(
        shapes=("LanguageModel.after_update parameter", "LanguageModel.after_update average"),
        diff=("LanguageModel.after_update", "LanguageModel.train"),
    ),
    "distillation": Chapter(
        shapes=tuple(f"LanguageModel.loss {name}" for name in ("expected", "logits", "from_text", "from_teachers")),
        diff=("LanguageModel.loss",),
    ),
}


@dataclass(frozen=True)
class Options:
    page: Path = ROOT / "notes.md"  # the page to fill
    loss_csv: Path = LOSS_CSV  # the log with the results


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        filled, left_out = results(options.loss_csv)
        corpus = load_corpus()
        if corpus.name != TINY_SHAKESPEARE:
            raise UserError("the shapes in notes.md are those of Tiny Shakespeare; put input.txt into data/ first")
        for rung in CHAPTERS:
            filled[f"shapes {rung}"] = shape_table(rung, corpus)
            filled[f"diff {rung}"] = lesson_diff(rung)
        write_between_markers(options.page, filled)
        print(f"filled {len(filled)} places of {options.page}", *left_out, sep="\n")


def results(loss_csv: Path) -> tuple[dict[str, str], list[str]]:
    """The lines with the losses, by the name of their place, and what of the log was left out.

    Raises UserError for a rung without finished runs.
    """
    own = load_results(Selection(loss_csv=loss_csv))
    preset = load_results(Selection(loss_csv=loss_csv, preset=PRESET))
    lines = {}
    for rung in CHAPTERS:
        scaled = issubclass(rung_module(rung).Config, ScaledConfig)
        lines[f"result {rung}"] = result(preset if scaled else own, rung)
    lines["result gpt at full size"] = result(own, "gpt")
    return lines, list(dict.fromkeys(own.left_out + preset.left_out))


def result(results: Results, rung: str) -> str:
    """A rung's loss, its change from the rung that it is compared with, if there is one, and its parameters."""
    runs, before = results.runs(rung), results.before(rung)
    words = f"Loss{f' with `{results.flags}`' * bool(results.flags)}: {mean_and_spread(runs['val_loss'])}"
    if before:
        words += f"; change against `{before}`: {change(results.losses(before), results.losses(rung))}"
    return f"{words}. Parameters: {runs['parameters'].iloc[0]:,}."


def shape_table(rung: str, corpus: Corpus) -> str:
    """A row for each of the chapter's shapes: in letters, and the output at the settings of the results."""
    module = rung_module(rung)
    config = module.Config.from_preset(PRESET if issubclass(module.Config, ScaledConfig) else None)
    sizes = {name: size for name, size in SIZES.items() if hasattr(config, name)}
    lettered, real = trace(module, replace(config, **sizes), corpus), trace(module, config, corpus)
    letters = LETTERS | {corpus.tokenizer.vocab_size: "V"}
    rows = []
    for name in CHAPTERS[rung].shapes:
        part, _, variable = name.partition(" ")
        taken, given = (
            "" if shape is None else in_brackets([letters.get(n, n) for n in shape]) for shape in lettered[name]
        )
        rows.append((part if variable else "", f"`{variable or part}`", (taken, given, in_brackets(real[name][1]))))
    lines = [["part", "input", "output", "output of a real batch"], ["---"] * 4]
    for (function, cells), group in itertools.groupby(rows, key=lambda row: (row[0], row[2])):
        names = ", ".join(name for _, name, _ in group)
        lines.append([f"{names} in `{function}`" if function else names, *cells])
    return markdown(lines)


def in_brackets(sizes: Iterable) -> str:
    sizes = tuple(sizes)
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"


def trace(module: ModuleType, config: TrainConfig, corpus: Corpus) -> dict[str, tuple]:
    """The shapes in one training step of a new model: (input or None, output) by the names that a Chapter uses.

    Of what runs several times, the first.
    """
    seen = {}
    idx, targets = corpus.batch(config.seed, 0, config.batch_size, config.block_size, config.sampling)
    with _variables_recorded(module, seen):
        torch.manual_seed(config.seed)
        model = module.LanguageModel(corpus.tokenizer.vocab_size, config)
        if hasattr(model, "prepare"):
            model.teachers, model.teacher_share = [model], 0.5  # no trained teacher is needed for shapes: its own
        optimizers = make_optimizers(model, config)
        for name, part in model.named_modules():
            part.register_forward_hook(_recorder(seen, name))
        loss_of(model)(model(idx), targets, idx).backward()
        for optimizer in optimizers:
            optimizer.step()
        after_update(model)
    return seen


def _recorder(seen: dict, name: str):
    def record(_: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        output = output[0] if isinstance(output, tuple) else output
        seen.setdefault(name, (tuple(inputs[0].shape), tuple(output.shape)))

    return record


@contextlib.contextmanager
def _variables_recorded(module: ModuleType, seen: dict) -> Iterator[None]:
    """While inside, whenever a function of `module` returns, the shapes of its local tensors are put into `seen`."""

    def look(frame, event: str, _) -> None:
        if event == "return" and frame.f_code.co_filename == module.__file__:
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor):
                    seen.setdefault(f"{frame.f_code.co_qualname} {name}", (None, tuple(value.shape)))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


def lesson_diff(rung: str) -> str:
    """The chapter's diff from the rung that it is compared with, and a line that names the rest of the lesson."""
    module, path, lower = rung_module(rung), rung_path(rung), rung_before(rung, list(RUNGS))
    if lower is None:
        return "The first rung: there is no file before it."
    before = rung_path(lower)
    lines, shown = [], CHAPTERS[rung].diff
    for name in shown:
        found = difflib.unified_diff(definition(before, name), definition(path, name), n=1, lineterm="")
        lines += [f"@@ {name} @@" if line.startswith("@@") else line for line in list(found)[2:]]
    rest = ", ".join(f"`{name}`" for name in module.LESSON if name not in shown)
    files = " ".join(each.relative_to(ROOT).as_posix() for each in (before, path))
    more = f"Not shown: {rest}. " if rest else ""
    return "\n".join(["```diff", *lines, "```", "", f"{more}The whole diff: `git diff --no-index {files}`"])


def definition(path: Path, name: str) -> list[str]:
    """The lines of a class, function or method of a file, by its qualified name; none if the file lacks it."""
    source = path.read_text(encoding="utf-8")
    node = ast.parse(source)
    for part in name.split("."):
        node = next((inner for inner in node.body if getattr(inner, "name", None) == part), None)
        if node is None:
            return []
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return source.splitlines()[first - 1 : node.end_lineno]


if __name__ == "__main__":
    main()
