"""Generate text with a trained model: a checkpoint, the latest of a rung, or with --ladder the latest of every rung.

The text appears as it is generated. Rungs 8 and up cache the keys and values of earlier characters; --no-cached
recomputes them for every character, several times as slow. The text is the same, except past the context of rungs
with rotary positions: their cache drops one character for each new one, where the others go on with half a context.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from data import UserError
from helper_scripts.ladder_table import around_markers, write_between_markers
from helper_scripts.models import RUNGS, Trained, checkpoints, find_checkpoint, latest_checkpoint, load_model, printable
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR, changed_flags, check_ranges
from training.device import choose_device
from training.generation import encode_prompt, stream

NAME = "samples"  # of the markers between which --write puts them
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline: a terminal would obey them


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional] = ""  # a checkpoint or a rung; by default the latest checkpoint of all
    prompt: str = ""  # the text to continue; empty is a line break
    length: int = 400  # characters to add
    temperature: float = 1.0  # divides the logits; 0 takes the likeliest character
    top_k: int = 0  # sample among the k likeliest characters; 0 is all of them
    seed: int = 0  # of the draws
    cached: bool = True  # keep the keys and values of earlier characters
    ladder: bool = False  # have every rung that has a checkpoint continue the same prompt
    write: Path | None = None  # with --ladder: a Markdown file with the two markers, between which to put the texts
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    runs_dir: Path = RUNS_DIR  # where the checkpoints are

    def __post_init__(self):
        check_ranges(self)
        if not 0 <= self.length < 2**63:
            raise UserError(f"--length is {self.length}; it has to be 0 or more")
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

    The latest at the rung's own settings, or else the latest of all. Raises UserError where there is no checkpoint.
    """
    latest_checkpoint(runs_dir)
    ladder, left_out = {}, []
    for path in checkpoints(runs_dir):  # the latest last
        try:
            new = load_model(path)
        except UserError as error:
            left_out.append(f"left out: {error}")
            continue
        if new.rung not in ladder or changed_flags(ladder[new.rung].config) or not changed_flags(new.config):
            ladder[new.rung] = new
    return [ladder[rung] for rung in RUNGS if rung in ladder], left_out


def heading(trained: Trained) -> str:
    name = f"{trained.rung} {changed_flags(trained.config)}".rstrip()
    return (
        f"--- {printable(name)}, seed {trained.config.seed}, {trained.corpus}: "
        f"validation loss {trained.last.val_loss:.2f} after {trained.last.step:,} steps"
    )


def show(trained: Trained, options: Options) -> None:
    for piece in text(trained, options):
        print(piece, end="", flush=True)
    print()


def text(trained: Trained, options: Options) -> Iterator[str]:
    """The prompt, then each character as it is generated. Raises UserError for a prompt that the model cannot read."""
    prompt = encode_prompt(trained.tokenizer, options.prompt)
    new = stream(
        trained.model.to(choose_device(options.device)),
        prompt,
        trained.config.block_size,
        temperature=options.temperature,
        top_k=options.top_k,
        generator=torch.Generator().manual_seed(options.seed),
        cached=options.cached,
    )
    yield visible(options.prompt)
    for character in itertools.islice(new, options.length):
        yield visible(trained.tokenizer.decode([character]))


def visible(text: str) -> str:
    """`text` with a mark in place of each control character but newline and tab."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", ""))  # the carriage return of a Windows newline


if __name__ == "__main__":
    main()
