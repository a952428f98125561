"""Where in its context a trained model loses: its exact loss, by how many characters it can see.

The model gets the text in windows of its context, and sees nothing before a window. So the first character of each is
predicted from one character, the last from all of the context. --block-size makes windows shorter. --stride lets them
overlap: each starts so many characters after the one before, and only its new characters count. Their loss is lower
than the log's, and takes longer to compute.

± is the standard error over windows, taken as independent. Lines average over different characters, so do not compare
along a column. To learn what a longer context is worth, compare the same characters with one window length and then a
longer one: --block-size 32 --stride 16, then 64 and 32, and so on.
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

from data import IGNORE, UserError, load_corpus
from helper_scripts.models import Trained, find_checkpoint, load_model
from helper_scripts.plot_loss import check_picture, save_picture
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR, changed_flags
from training.device import choose_device
from training.evaluate import TOKENS_AT_ONCE


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # checkpoints or rungs; by default the latest of all
    split: Literal["val", "train"] = "val"  # what to evaluate on; of the train split, as much as there is of the other
    block_size: int = 0  # characters in a window; 0 is each model's context
    stride: int = 0  # characters from the start of a window to that of the next; 0 is a window
    corpus: str | None = None  # the text that the models were trained on; by default where it was then
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
            table = by_position(evaluate(trained, options))
            label = trained.rung if rungs.count(trained.rung) == 1 else f"{number}: {trained.rung}"
            described = f"{label} {changed_flags(trained.config)}".rstrip()
            loss = (table["loss"] * table["characters"]).sum() / table["characters"].sum()
            print(f"{described}, seed {trained.config.seed}, after {trained.last.step:,} steps: {loss:.4f}")
            columns[label] = table
        print(f"\n{as_text(columns)}")
        if options.out:
            save_picture(draw(columns, {"val": "validation"}.get(options.split, "train")), options.out)
            print(f"\ndrew {options.out}")


def evaluate(trained: Trained, options: Options) -> Iterator[Tensor]:
    """The losses of a model, as `losses_of`, on what the options name. Raises UserError where that does not fit it."""
    context = trained.config.block_size
    block_size = options.block_size or context
    stride = options.stride or block_size
    if not stride <= block_size <= context:
        raise UserError(
            f"windows of {block_size} characters, {stride} apart, are not for {trained.rung} with its context of "
            f"{context}: --block-size is at most the context, and --stride at most --block-size"
        )
    corpus = load_corpus(options.corpus or trained.config.corpus, trained.config.holdout)
    if not corpus.sha256.startswith(trained.corpus_sha256):
        raise UserError(
            f"{trained.rung} was trained on {trained.corpus}, sha256 {trained.corpus_sha256}, and this is "
            f"{corpus.name}, sha256 {corpus.sha256[:12]}; name the other text with --corpus"
        )
    corpus.check_context(block_size)
    ids = corpus.val if options.split == "val" else corpus.train[: len(corpus.val)]  # as the log's two losses have it
    device = choose_device(options.device)
    return losses_of(trained.model.to(device), ids.to(device), block_size, stride)


@torch.no_grad()
def losses_of(model: nn.Module, ids: Tensor, block_size: int, stride: int) -> Iterator[Tensor]:
    """Losses of all of `ids` (n,) but the first, each once, in nats: float64 (windows, T), nan where none is meant.

    Some windows at a time, T = `block_size` and `stride` <= T apart. Column t: characters predicted from t + 1. Where
    windows overlap, the earlier one counts, in which the model sees more.
    """
    n = len(ids) - 1
    padding = (block_size - n) % stride if n > block_size else block_size - n
    inputs = F.pad(ids[:-1], (0, padding)).unfold(0, block_size, stride)
    targets = F.pad(ids[1:].long(), (0, padding), value=IGNORE).unfold(0, block_size, stride)
    rows = max(1, TOKENS_AT_ONCE // block_size)
    for start in tqdm(range(0, len(inputs), rows), desc="evaluating", leave=False):
        idx, target = inputs[start : start + rows].long(), targets[start : start + rows].clone()  # (W, T)
        target[0 if start else 1 :, : block_size - stride] = IGNORE  # these the window before has
        losses = F.cross_entropy(model(idx).flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        # on the CPU, for MPS has no float64
        yield losses.cpu().double().masked_fill(target.cpu() == IGNORE, float("nan"))


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
    residuals = sums - loss * counts  # of each window, which may have more or fewer characters
    error = (residuals.square().sum(0) * windows / (windows - 1)).sqrt() / total
    table = pd.DataFrame({"loss": loss.numpy(), "error": error.numpy(), "characters": total.numpy()}, index=edges[1:])
    return table[table["characters"] > 0]


def as_text(columns: dict[str, pd.DataFrame]) -> str:
    """A line for each range of characters seen, a column for each model."""

    def cell(row: pd.Series) -> str:
        return f"{row['loss']:.3f}" + ("" if pd.isna(row["error"]) else f" ± {row['error']:.3f}")

    def range_up_to(end: int) -> str:  # from just above the power of two before
        start = 2 ** ((end - 1).bit_length() - 1) + 1 if end > 1 else 1
        return f"{start} to {end}" if start < end else f"{end}"

    cells = pd.DataFrame({label: table.apply(cell, axis=1) for label, table in columns.items()}).sort_index()
    return (
        cells.rename(index=range_up_to).fillna("").rename_axis("characters seen").reset_index().to_string(index=False)
    )


def draw(columns: dict[str, pd.DataFrame], split: str) -> Figure:
    """Loss against characters seen, a line for each model, with a band of one standard error."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.add_subplot()
    for label, table in columns.items():
        panel.plot(table.index, table["loss"], marker="o", label=label)
        panel.fill_between(table.index, table["loss"] - table["error"], table["loss"] + table["error"], alpha=0.15)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda end, _: f"{end:g}")
    panel.set(xlabel="characters that the model can see, up to", ylabel="nats per character")
    panel.set_title(f"Where in its context a model loses ({split} split)")
    panel.grid(alpha=0.5)
    panel.legend()
    return figure


if __name__ == "__main__":
    main()
