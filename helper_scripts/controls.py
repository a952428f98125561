"""Print tables that separate a part from what comes with it: skip connections and depth, equal parameters, equal time.

Rung 5 adds skip connections and depth together; the first two tables add one after the other. Later rungs are larger
and slower; in the other tables, earlier rungs have more channels, to have as many parameters as pre_norm, or more
steps, to take as long. All are rungs with flags: `run_ladder.py "residual --n-layer 1" --seeds 5`.
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
    ("feed_forward", "feed_forward --n-layer 3 --learning-rate 0.001", "residual"),  # the best rate of three for it
)
PARAMETERS = (  # about 42,000; n_embd has to be divisible by four heads, and a bigram has one size only
    "self_attention --n-embd 98",
    "multi_head --n-embd 88",
    "feed_forward --n-embd 52",
    "residual",
    "post_norm",
    "pre_norm",
)
TIME = (  # of 5,000 steps of pre_norm, by the time of a step of each rung
    "bigram --steps 45000",
    "self_attention --steps 20000",
    "multi_head --steps 16000",
    "feed_forward --steps 12000",
    "residual --steps 5500",
    "post_norm",
    "pre_norm",
)
TABLES = {
    "Skip connections, then depth": CORNERS[0],
    "Depth, then skip connections": CORNERS[1],
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
    """A row for each of `labels`, compared with the row before."""
    return markdown_table(results, columns, dict(zip(labels, (None, *labels), strict=False)))


if __name__ == "__main__":
    main()
