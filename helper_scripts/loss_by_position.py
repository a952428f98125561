"""Where in its context a trained model loses: its exact loss, by how many characters it can see.

A model reads the text in windows of its context and knows nothing of what came before one: the first character of each
is foretold from a single one, the last from all of the context. `--block-size` has it read in shorter windows.
`--stride` slides them: each window begins so many characters after the one before it, and only what is new in it
counts, so that all but the first characters are foretold from a long past. That loss is lower, takes longer, and is not
the log's.

± is the standard error over windows, taken as independent: how far off another text of this kind might be. Models that
read the same text have most of that in common. Lines have not: each is of other characters, and two of them may differ
by several hundredths for that alone. What a longer memory is worth is told by the same characters, read with one window
and then a longer one: `--block-size 32 --stride 16`, then 64 and 32, and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data import UserError, load_corpus
from helper_scripts.models import Trained, find_checkpoint, load_model
from helper_scripts.plot_loss import check_picture, save_picture
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR, changed_flags
from training.device import choose_device
from training.evaluate import TOKENS_AT_ONCE


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # checkpoints or rungs; by default the latest of all
    split: Literal["val", "train"] = "val"  # what to read; of the train split, as much as there is of the other
    block_size: int = 0  # characters in a window; 0 is each model's context
    stride: int = 0  # characters from where a window begins to where the next one does; 0 is a window
    out: Path | None = None  # a picture to draw as well; its ending says which kind: png, svg, pdf
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    runs_dir: Path = RUNS_DIR  # where the checkpoints are

    def __post_init__(self):
        if self.block_size < 0 or self.stride < 0:
            raise UserError("--block-size and --stride have to be 1 or more; 0 is what they are by default")


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        if options.out:
            check_picture(options.out)
        models = [load_model(find_checkpoint(options.runs_dir, name)) for name in options.models or ("",)]
        rungs, columns = [trained.rung for trained in models], {}
        for number, trained in enumerate(models, 1):
            table = by_position(read(trained, options))
            label = trained.rung if rungs.count(trained.rung) == 1 else f"{number}: {trained.rung}"
            described = f"{label} {changed_flags(trained.config)}".rstrip()
            loss = (table["loss"] * table["characters"]).sum() / table["characters"].sum()
            print(f"{described}, seed {trained.config.seed}, after {trained.last.step:,} steps: {loss:.4f}")
            columns[label] = table
        print(f"\n{as_text(columns)}")
        if options.out:
            what = {"val": "validation split", "train": "train split"}[options.split]
            draw(columns, what, options.out)
            print(f"\ndrew {options.out}")


def read(trained: Trained, options: Options) -> Iterator[Tensor]:
    """The losses of a model, as `losses_of`, of what the options name. Raises UserError where it cannot be read so."""
    context = trained.config.block_size
    block_size = options.block_size or context
    stride = options.stride or block_size
    if not stride <= block_size <= context:
        raise UserError(
            f"windows of {block_size} characters, {stride} apart, are not for {trained.rung} with its context of "
            f"{context}: --block-size is at most the context, and --stride at most --block-size"
        )
    corpus = load_corpus(trained.config.corpus)
    if not corpus.sha256.startswith(trained.corpus_sha256):
        raise UserError(
            f"{trained.rung} was trained on {trained.corpus}, sha256 {trained.corpus_sha256}, and what is there now is "
            f"{corpus.name}, {corpus.sha256[:12]}; put that text back, or train the rung on this one"
        )
    corpus.check_context(block_size)
    ids = corpus.val if options.split == "val" else corpus.train[: len(corpus.val)]  # as the log's two losses have it
    device = choose_device(options.device)
    return losses_of(trained.model.to(device), ids.to(device), block_size, stride)


@torch.no_grad()
def losses_of(model: nn.Module, ids: Tensor, block_size: int, stride: int) -> Iterator[Tensor]:
    """Losses of all of `ids` (n,) but the first, each once, in nats: float64 (windows, T), nan where none is meant.

    Some windows at a time, T = `block_size` and `stride` <= T apart. Column t is of characters foretold from t + 1.
    Where windows overlap, the earlier one counts, in which the model sees more.
    """
    n = len(ids) - 1
    filling = (block_size - n) % stride if n > block_size else block_size - n
    inputs = F.pad(ids[:-1], (0, filling)).unfold(0, block_size, stride)
    targets = F.pad(ids[1:], (0, filling)).unfold(0, block_size, stride)
    missing = torch.arange(block_size) >= block_size - filling  # of the last window
    seen = torch.arange(block_size) < block_size - stride  # by the window before
    windows = max(1, TOKENS_AT_ONCE // block_size)
    for start in tqdm(range(0, len(inputs), windows), desc="reading", leave=False):
        idx, target = (part[start : start + windows].long() for part in (inputs, targets))  # (W, T)
        losses = F.cross_entropy(model(idx).flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
        losses = losses.cpu().double()  # on the CPU, for MPS has no float64
        losses[1 if start == 0 else 0 :, seen] = float("nan")
        if start + windows >= len(inputs):
            losses[-1, missing] = float("nan")
        yield losses


def by_position(losses: Iterator[Tensor]) -> pd.DataFrame:
    """Mean loss and its standard error by how many characters are seen: up to 1, 2, 4, 8, ..., T.

    The index is the largest number of them; `characters` is how many losses a line is the mean of.
    """
    sums, counts = [], []
    for part in losses:  # (W, T)
        T = part.shape[1]
        edges = [0, *(2**i for i in range((T - 1).bit_length())), T]
        sizes = [end - start for start, end in itertools.pairwise(edges)]
        sums.append(torch.stack([piece.nansum(1) for piece in part.split(sizes, 1)], 1))  # (W, lines)
        counts.append(torch.stack([(~piece.isnan()).sum(1) for piece in part.split(sizes, 1)], 1))
    sums, counts = torch.cat(sums), torch.cat(counts)
    total = counts.sum(0)
    loss = sums.sum(0) / total
    windows = (counts > 0).sum(0)
    # windows may have more or fewer characters: what each is off by, from what the mean makes of those it has
    residuals = sums - loss * counts
    error = (residuals.square().sum(0) * windows / (windows - 1)).sqrt() / total
    columns = {"loss": loss, "error": error, "characters": total}
    table = pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=edges[1:])
    return table[table["characters"] > 0]


def as_text(columns: dict[str, pd.DataFrame]) -> str:
    """A line for each range of characters seen, a column for each model."""

    def cell(row: pd.Series) -> str:
        return f"{row['loss']:.3f}" + ("" if pd.isna(row["error"]) else f" ± {row['error']:.3f}")

    cells = pd.DataFrame({label: table.apply(cell, axis=1) for label, table in columns.items()}).sort_index()
    cells.index = [range_up_to(end) for end in cells.index]
    return cells.fillna("").rename_axis("characters seen").reset_index().to_string(index=False)


def range_up_to(end: int) -> str:
    """The line of `by_position` that goes up to `end`, from just above the power of two before."""
    start = 2 ** ((end - 1).bit_length() - 1) + 1 if end > 1 else 1
    return f"{start} to {end}" if start < end else f"{end}"


def draw(columns: dict[str, pd.DataFrame], what: str, out: Path) -> None:
    """Loss against characters seen, a line for each model, with a band of one standard error."""
    import seaborn as sns  # takes seconds, and --help does without

    figure = Figure(figsize=(8, 5), layout="constrained")
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        panel = figure.add_subplot()
        palette = sns.husl_palette(len(columns), h=0.6, s=0.9, l=0.55)
        for colour, (label, table) in zip(palette, columns.items(), strict=True):
            panel.plot(table.index, table["loss"], color=colour, marker="o", label=label)
            low, high = table["loss"] - table["error"], table["loss"] + table["error"]
            panel.fill_between(table.index, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda end, _: f"{end:g}")
        panel.set(xlabel="characters that the model can see, up to", ylabel="nats per character")
        panel.set_title(f"Where in its context a model loses ({what})")
        panel.legend()
    save_picture(figure, out)


if __name__ == "__main__":
    main()
