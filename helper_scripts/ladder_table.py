"""Print the ladder as a Markdown table from the loss log."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from data import UserError
from data.sources import TINY_SHAKESPEARE
from helper_scripts.compare import change
from helper_scripts.models import rung_path, training_flops
from helper_scripts.results import Results, Selection, load_results
from training.cli import errors_in_one_line, parse

# The final losses that the original write-up reports for these stages, each one sampled estimate of one run.
WRITE_UP = {
    "bigram": 2.47,
    "self_attention": 2.45,
    "multi_head": 2.38,
    "feed_forward": 2.27,
    "residual": 2.20,
    "post_norm": 2.06,
    "pre_norm": 2.07,
    "gpt": 1.48,
}

COLUMNS = (  # losses in nats per character; FLOPs of forward, backward and update; characters that were trained on
    "rung",
    "adds",
    "validation loss",
    "bits per character",
    "write-up",
    "change, and its 95% interval",
    "parameters",
    "FLOPs a character",
    "characters",
)


@dataclass(frozen=True)
class Options(Selection):
    rungs: tuple[str, ...] = ()  # the rungs to show, by name; by default all


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        results = load_results(options, options.rungs)
        print(markdown_table(results), *results.left_out, sep="\n")


def markdown_table(
    results: Results, columns: Sequence[str] = (), before: Mapping[str, str | None] | None = None
) -> str:
    """A row a label, a cell a column; by default all of COLUMNS that the results have figures for.

    before: the labels to show, and what each is compared with; by default all, compared as in results.before. If FLOPs
    cannot be counted, the cell is a dash, and results.left_out gets a line.
    """
    before = {label: results.before(label) for label in results.order} if before is None else before
    written_up = results.corpus == TINY_SHAKESPEARE and not results.flags
    columns = columns or [column for column in COLUMNS if written_up or column != "write-up"]
    rows = [[_cell(column, results, label, other) for column in columns] for label, other in before.items()]
    return markdown([columns, ["---"] * len(columns), *rows])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def mean_and_spread(losses: pd.Series) -> str:
    """Mean ± standard deviation, and their number."""
    spread = f" ± {losses.std():.3f}" if len(losses) > 1 else ""
    return f"**{losses.mean():.3f}**{spread} (n = {len(losses)})"


def describe(rung: str) -> str:
    """What a rung adds: the first line of its docstring after the colon. The file is read, not run."""
    try:
        docstring = ast.get_docstring(ast.parse(rung_path(rung).read_text(encoding="utf-8"))) or ""
    except (OSError, ValueError, SyntaxError):  # while it is being edited
        return "-"
    return docstring.partition("\n")[0].partition(": ")[2].rstrip(".")


def _cell(column: str, results: Results, label: str, before: str | None) -> str:
    runs = results.runs(label)
    first, losses = runs.iloc[0], runs["val_loss"]
    match column:
        case "rung":
            return f"`{label}`"
        case "adds":
            return describe(first["rung"])
        case "validation loss":
            return mean_and_spread(losses)
        case "bits per character":
            return f"{losses.mean() / math.log(2):.3f}"
        case "write-up":
            return f"{WRITE_UP[label]:.2f}" if label in WRITE_UP else ""
        case "change, and its 95% interval":
            if before and not results.comparable(before, label):
                return "not compared: other shared code"
            return change(results.losses(before), results.losses(label)) if before else ""
        case "parameters":
            return f"{first['parameters']:,}"
        case "FLOPs a character":
            return _flops(results, label, first["parameters"], "{:,.0f} k", 1e-3)
        case "FLOPs":
            return _flops(results, label, first["parameters"], "{:,.0f} G", 1e-9 * first["tokens"])
        case "characters":
            return f"{first['tokens'] / 1e6:.2f} M"
        case "seconds":
            return f"{runs['seconds'].mean():,.0f}"
    raise KeyError(column)


def _flops(results: Results, label: str, parameters: int, shown: str, factor: float) -> str:
    """FLOPs of training on a character, times a factor, in the format `shown`."""
    try:
        return shown.format(factor * training_flops(results.full(label), int(parameters)))
    except UserError as error:
        line = f"no FLOPs of {label}: {error}"
        if line not in results.left_out:
            results.left_out.append(line)
        return "-"


if __name__ == "__main__":
    main()
