"""Generate text with a trained model, or with several as one. A model is a checkpoint, or the latest of a rung.

With several models, which need the same vocabulary, each character is drawn from the mean of their probabilities.

The text appears as it is generated. Rungs 8 and up cache the keys and values of earlier characters; --no-cached
recomputes them for every character, which takes a dozen times as long. The text is the same, except past the context of
rungs with rotary positions: their cache drops one character for each new one; the others go on with half a context.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from data.files import visible
from helper_scripts.models import load_models
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR, check_ranges
from training.device import choose_device
from training.generation import encode_prompt, stream


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # checkpoints or rungs; by default the latest
    prompt: str = ""  # the text to continue; empty is a line break
    length: int = 400  # characters to add
    temperature: float = 1.0  # divides the logits; 0 takes the likeliest character
    top_k: int = 0  # sample among the k likeliest characters; 0 is all of them
    seed: int = 0  # of the draws
    cached: bool = True  # keep the keys and values of earlier characters
    device: str = "auto"  # cpu, cuda or mps; auto takes cuda if it is there, else mps, else cpu
    runs_dir: Path = RUNS_DIR  # where the checkpoints are

    def __post_init__(self):
        check_ranges(self)


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        device = choose_device(options.device)
        models = load_models(options.runs_dir, options.models)
        tokenizer = models[0].tokenizer
        new = stream(
            [(each.model.to(device), each.config.block_size) for each in models],
            encode_prompt(tokenizer, options.prompt),
            temperature=options.temperature,
            top_k=options.top_k,
            generator=torch.Generator().manual_seed(options.seed),
            cached=options.cached,
        )
        print(visible(options.prompt), end="", flush=True)
        for character in itertools.islice(new, options.length):
            print(visible(tokenizer.decode([character])), end="", flush=True)
        print()


if __name__ == "__main__":
    main()
