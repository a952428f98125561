"""Is it the part, or what comes with it? Print tables that tell: skips and depth, equal parameters, equal time.

Rung 5 brings skips and depth at once; the first two tables have one before the other. Upper rungs are larger and slower
than lower ones; in the others the lower ones have more channels, until they have as many parameters as pre_norm, or
more steps, until they take as long. All are rungs with flags: `run_ladder.py "residual --n-layer 1" --seeds 5`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data import LOSS_CSV
from helper_scripts.ladder_table import markdown_table
from helper_scripts.results import Results, Selection, load_results
from training.cli import errors_in_one_line, parse

CORNERS = (
    ("feed_forward", "residual --n-layer 1", "residual"),
    ("feed_forward", "feed_forward --n-layer 3", "residual"),
)
PARAMETERS = (  # 42,000, as near as a number of channels that four heads can share comes; a bigram has one size only
    "self_attention --n-embd 98",
    "multi_head --n-embd 88",
    "feed_forward --n-embd 52",
    "residual",
    "post_norm",
    "pre_norm",
)
TIME = (  # that of pre_norm's 5,000 steps, by what a step of each takes at its own settings
    "bigram --steps 45000",
    "self_attention --steps 20000",
    "multi_head --steps 16000",
    "feed_forward --steps 12000",
    "residual --steps 5500",
    "post_norm",
    "pre_norm",
)
TABLES = {
    "Skips, then depth": CORNERS[0],
    "Depth, then skips": CORNERS[1],
    "Equal parameters": PARAMETERS,
    "Equal time": TIME,
}
COLUMNS = ("rung", "parameters", "FLOPs", "validation loss", "bits per character", "change, and its 95% interval")


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    corpus: str | None = None  # use runs on this corpus; by default Tiny Shakespeare


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        labels = tuple(dict.fromkeys(sum(TABLES.values(), ())))
        results = load_results(Selection(options.loss_csv, options.corpus), labels)
        for name, rows in TABLES.items():
            print(f"{name}:\n\n{table(results, rows, (*COLUMNS, 'seconds'))}\n")
        print(*results.left_out, sep="\n", end="\n" * bool(results.left_out))


def table(results: Results, labels: tuple[str, ...], columns: tuple[str, ...] = COLUMNS) -> str:
    """A row for each of `labels`, and what it changes about the one before."""
    return markdown_table(results, columns, dict(zip(labels, (None, *labels), strict=False)))


if __name__ == "__main__":
    main()
