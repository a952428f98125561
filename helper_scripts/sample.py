"""Have a trained model write: from a checkpoint, the latest of a rung, or with --ladder from every rung's latest.

The text comes as it is written. Rung 8 keeps the keys and values of the characters before; `--no-cached` computes them
anew each time, for the same text, a dozen times as slow. It sees at most its context: when that is full, it goes on
with the later half of it. The rungs above it, whose positions are rotary, need not: they forget one character for each
that they write. There `--no-cached` writes another text past the context, for it knows nothing of what came before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from data import UserError
from helper_scripts.ladder_table import around_markers, write_between_markers
from helper_scripts.models import Trained, checkpoints, find_checkpoint, latest_checkpoint, load_model
from helper_scripts.results import RUNGS
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR, changed_flags
from training.device import choose_device
from training.sampling import encode_prompt, stream

NAME = "samples"  # of the markers between which --write puts them


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional] = ""  # a checkpoint or a rung; by default the latest checkpoint of all
    prompt: str = ""  # the text to continue; empty is a line break
    length: int = 400  # characters to add
    temperature: float = 1.0  # below 1 bolder, 0 always the likeliest character
    top_k: int = 0  # draw among the k likeliest characters; 0 is all of them
    seed: int = 0  # of the draws
    cached: bool = True  # keep what need not be computed twice
    ladder: bool = False  # have every rung that has a checkpoint continue the same prompt
    write: Path | None = None  # with --ladder: a Markdown file with the two markers, between which to put the texts
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    runs_dir: Path = RUNS_DIR  # where the checkpoints are

    def __post_init__(self):
        if not (0 <= self.length < 2**31 and 0 <= self.top_k < 2**31 and 0 <= self.seed < 2**63):
            raise UserError("--length, --top-k and --seed have to be 0 or more, and no astronomical numbers")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature is {self.temperature}; it has to be 0 or more")
        if self.ladder and self.model:
            raise UserError(f"--ladder takes every rung: leave out {self.model}")
        if self.write and not self.ladder:
            raise UserError("--write puts the texts of --ladder into a page; add --ladder")


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        if not options.ladder:
            show(load_model(find_checkpoint(options.runs_dir, options.model)), options)
            return
        trained, left_out = every_rung(options.runs_dir)
        if options.write:
            around_markers(options.write, NAME)  # are they there?
            texts = "\n\n".join(f"{heading(one)}\n{''.join(text(one, options)).strip()}" for one in trained)
            write_between_markers(options.write, f"```text\n{texts}\n```", NAME)
            print(f"wrote the {NAME} of {len(trained)} rungs into {options.write}")
        else:
            for one in trained:
                print(f"{heading(one)}\n")
                show(one, options)
                print()
        print(*left_out, sep="\n", end="\n" if left_out else "")


def every_rung(runs_dir: Path) -> tuple[list[Trained], list[str]]:
    """A model of each rung that has one, in ladder order, and a line for each checkpoint that could not be read.

    The latest at the rung's own settings, or else the latest of all. Raises UserError where there is none.
    """
    latest_checkpoint(runs_dir)
    ladder, left_out = [], []
    for rung in RUNGS:
        models = []
        for path in checkpoints(runs_dir, rung):
            try:
                models.append(load_model(path))
            except UserError as error:
                left_out.append(f"left out: {error}")
        if models:
            ladder.append(max(enumerate(models), key=lambda model: (not changed_flags(model[1].config), model[0]))[1])
    return ladder, left_out


def heading(trained: Trained) -> str:
    name = f"{trained.rung} {changed_flags(trained.config)}".rstrip()
    return (
        f"--- {name}, seed {trained.config.seed}, {trained.corpus}: "
        f"validation loss {trained.last.val_loss:.2f} after {trained.last.step:,} steps"
    )


def show(trained: Trained, options: Options) -> None:
    for piece in text(trained, options):
        print(piece, end="", flush=True)
    print()


def text(trained: Trained, options: Options) -> Iterator[str]:
    """The prompt, then each character as it is written. Raises UserError for a prompt that the model cannot read."""
    prompt = encode_prompt(trained.tokenizer, options.prompt)
    model = trained.model.to(choose_device(options.device))
    new = stream(
        model,
        prompt,
        trained.config.block_size,
        temperature=options.temperature,
        top_k=options.top_k,
        generator=torch.Generator().manual_seed(options.seed),
        cached=options.cached,
    )
    yield trained.tokenizer.decode(prompt) if options.prompt else ""
    for character in itertools.islice(new, options.length):
        yield trained.tokenizer.decode([character])


if __name__ == "__main__":
    main()
