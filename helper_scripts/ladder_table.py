"""Print the ladder as a Markdown table from the loss log; with --write, put it between two markers of a page."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data import UserError
from data.files import atomic_write
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


@dataclass(frozen=True)
class Options(Selection):
    write: Path | None = None  # a Markdown file with the two markers, between which to put the table


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        results = load_results(options)
        table, name = markdown_table(results), f"{options.preset or 'ladder'}{' holdout' * options.holdout} table"
        if options.write:
            write_between_markers(options.write, table, name)
            table = f"wrote the {name} into {options.write}"
        print(table, *results.left_out, sep="\n")


def markdown_table(results: Results) -> str:
    """A row a rung, in ladder order; losses as mean ± standard deviation over n seeds.

    FLOPs are those of training on a character, its share of an update included; where they cannot be counted there is
    a dash, and results.left_out gets a line. Characters are those that were trained on.
    """
    written_up = results.corpus == TINY_SHAKESPEARE and not results.flags
    columns = ["rung", "adds", "validation loss", "change, and its 95% interval", "parameters", "FLOPs a character"]
    columns[3:3] = ["write-up"] * written_up
    lines = [[*columns, "characters"], ["---"] * (len(columns) + 1)]
    for label in results.order:
        runs, before = results.runs(label), results.before(label)
        first = runs.iloc[0]
        try:
            flops = f"{training_flops(results.full(label), int(first['parameters'])) / 1e3:,.0f} k"
        except UserError as error:
            flops = "-"
            results.left_out.append(f"no FLOPs of {label}: {error}")
        lines.append(
            [
                f"`{label}`",
                describe(first["rung"]),
                mean_and_spread(runs["val_loss"]),
                *([f"{WRITE_UP[label]:.2f}" if label in WRITE_UP else ""] * written_up),
                change(results.losses(before), results.losses(label)) if before else "",
                f"{first['parameters']:,}",
                flops,
                f"{first['tokens'] / 1e6:.2f} M",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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


def write_between_markers(path: Path, text: str, name: str) -> None:
    """Put `text` between the markers of that name, with the page's own line ends.

    Raises UserError where the file or a marker is missing, or it cannot be written; it is then as it was.
    """
    opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        page = path.read_bytes().decode("utf-8")
        before, begin, rest = page.partition(opening)
        _, end, after = rest.partition(closing)
        if not end:
            raise UserError(f"{path} lacks the lines {opening} and {closing}; put them where the table is to go")
        new = f"{begin}\n{text}\n{end}".replace("\n", "\r\n" if "\r\n" in page else "\n")
        with atomic_write(path) as file:
            file.write(f"{before}{new}{after}".encode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', error)}; name another --write") from None


if __name__ == "__main__":
    main()
