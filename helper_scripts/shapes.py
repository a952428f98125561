"""Print each module of a rung with its input shape, output shape and parameters, on a real batch.

Flags are the rung's own: `shapes.py gpt --preset laptop`. Modules are in the order of their calls, each with its own
parameters. If a module has several arguments or outputs, the shape is that of the first. If blocks are alike, the first
is shown with its parts; the others have one row each, with all their parameters.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import torchinfo
import tyro
from torch import nn
from torchinfo.layer_info import LayerInfo

from data import Corpus, load_corpus
from helper_scripts.models import check_rungs, rung_module
from training import TrainConfig
from training.cli import errors_in_one_line, parse
from training.device import choose_device
from training.run import count_parameters

COLUMNS = ("input_size", "output_size", "num_params")
COLUMN_WIDTH = 18  # characters: [64, 6, 256, 64] and some space


@dataclass(frozen=True)
class Options:
    rung: Annotated[str, tyro.conf.Positional] = "gpt"  # its name; flags of the rung may follow


def main() -> None:
    with errors_in_one_line():
        words = [word for label in sys.argv[1:2] for word in label.split()] + sys.argv[2:]  # in quotes or not
        rung = parse(Options, description=__doc__, args=words[:1]).rung
        check_rungs(rung)
        module = rung_module(rung)
        config = parse(module.Config, description=__doc__, args=words[1:])
        device = choose_device(config.device)
        corpus = load_corpus(config.corpus, config.holdout).to(device)
        corpus.check_context(config.block_size)
        model = module.LanguageModel(corpus.tokenizer.vocab_size, config).to(device)
        print(
            f"{rung}: {count_parameters(model):,} parameters; a batch of {config.batch_size} x {config.block_size} "
            f"characters of {corpus.name}, {corpus.tokenizer.vocab_size} distinct\n"
        )
        print(table(model, corpus, config), end="")


def table(model: nn.Module, corpus: Corpus, config: TrainConfig) -> str:
    """A line for each module of `model`, which is on the device that `corpus` is on."""
    idx, _ = corpus.batch(config.seed, 0, config.batch_size, config.block_size, config.sampling)  # (B, T)
    statistics = torchinfo.summary(
        model,
        input_data=idx,
        col_names=COLUMNS,
        col_width=COLUMN_WIDTH,
        row_settings=("var_names", "ascii_only"),
        device=idx.device,
        verbose=0,
    )
    layout, total = statistics.formatting, statistics.total_params
    summarised = alike(statistics.summary_list)
    hidden = {id(part) for block in summarised for part in block.children}
    rows = [
        layout.layer_info_to_row(layer, reached_max_depth=layer in summarised, total_params=total)
        for layer in statistics.summary_list
        if id(layer) not in hidden
    ]
    return layout.header_row() + "".join(rows)


def alike(layers: list[LayerInfo]) -> list[LayerInfo]:
    """The modules of a list, such as the blocks, with the same parts and shapes as an earlier one in the list."""
    seen, found = set(), []
    for layer in layers:
        if layer.parent_info and layer.children and isinstance(layer.parent_info.module, nn.ModuleList | nn.Sequential):
            parts = [(each.depth, each.var_name, *row(each)) for each in layer.children]
            look = (id(layer.parent_info), *row(layer), *parts)
            if look in seen:
                found.append(layer)
            seen.add(look)
    return found


def row(layer: LayerInfo) -> tuple:
    return layer.class_name, str(layer.input_size), str(layer.output_size), layer.num_params


if __name__ == "__main__":
    main()
