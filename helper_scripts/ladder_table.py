"""Print the ladder as a Markdown table from the loss log; with --write, put it between two markers in README.md."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data import LOSS_CSV, UserError
from helper_scripts.compare import change
from helper_scripts.models import rung_before, training_flops
from helper_scripts.results import RUNGS, Budget, Results, load_results
from helper_scripts.whole import write_whole
from stages import LADDER
from training.cli import errors_in_one_line, parse

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"own": "ladder table", "short": "short table", "laptop": "laptop table"}  # of the markers, by budget

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
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    corpus: str | None = None  # the corpus whose runs to list; by default Tiny Shakespeare
    budget: Budget = "own"  # the settings whose runs to list: their rungs' own, or those of run_ladder.py --budget
    variants: bool = False  # list runs with all settings
    write: Path | None = None  # a Markdown file with the two markers, between which to put the table


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        results = load_results(options.loss_csv, options.corpus, options.variants, budget=options.budget)
        show(markdown_table(results), options.write, NAMES[options.budget])
        print(*results.left_out, sep="\n", end="\n" if results.left_out else "")


def markdown_table(results: Results) -> str:
    """A row a rung, in ladder order; losses as mean ± standard deviation over n seeds, seconds as their mean.

    Next to them what the write-up has, or where it has none of these rungs' settings, the change against the rung
    before. FLOPs are those of training on a character, its share of an update included;
    characters are those that were trained on.
    """
    written_up = not WRITE_UP.keys().isdisjoint(results.order)
    held_against = "write-up" if written_up else "change, and its 95% interval"
    lines = [
        f"| rung | adds | validation loss | {held_against} | parameters | FLOPs a character | characters | seconds | "
        "commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    final = results.final()
    for label in results.order:
        runs = final[final["label"] == label]
        first = runs.iloc[0]
        before = rung_before(label, results.order)
        difference = change(results.losses(before), results.losses(label)) if before else ""
        flops = training_flops(label, first["parameters"])
        cells = (
            f"`{label}`",
            describe(first["experiment"]),
            mean_and_spread(runs["val_loss"]),
            (f"{WRITE_UP[label]:.2f}" if label in WRITE_UP else "") if written_up else difference,
            f"{first['parameters']:,}",
            "" if flops is None else f"{flops / 1e3:,.0f} k",
            f"{first['tokens'] / 1e6:.2f} M",
            f"{runs['seconds'].mean():,.0f}",
            ", ".join(f"`{commit}`" for commit in runs["commit"].unique()),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_spread(losses: pd.Series) -> str:
    """Mean ± standard deviation, and their number."""
    spread = f" ± {losses.std():.3f}" if len(losses) > 1 else ""
    return f"**{losses.mean():.3f}**{spread} (n = {len(losses)})"


def describe(rung: str) -> str:
    """What a rung adds: the first line of its docstring after the colon. The file is read, not run."""
    path = ROOT / (LADDER[RUNGS.index(rung)].replace(".", "/") + ".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].partition(": ")[2].rstrip(".")


def show(table: str, page: Path | None, name: str) -> None:
    """Print `table`, or put it between the markers of that name in `page`."""
    if page is None:
        print(table)
    else:
        write_between_markers(page, table, name)
        print(f"wrote the {name} into {page}")


def write_between_markers(path: Path, table: str, name: str) -> None:
    """Replace what stands between the markers of that name. Raises UserError where the file or a marker is missing, or
    the file cannot be written; it is then as it was.
    """
    before, after = around_markers(path, name)
    write_whole(path, f"{before}\n{table}\n{after}".encode(), "name another page with --write")


def around_markers(path: Path, name: str) -> tuple[str, str]:
    """A page up to the first marker of that name, and from the second on. Raises UserError where one is missing."""
    opening, closing = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; name a Markdown file with --write") from None
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end):
        raise UserError(f"{path} lacks the lines {opening} and {closing}; put them where the table is to go")
    return before + begin, end + after


if __name__ == "__main__":
    main()
