"""Skips or depth? Both were new in rung 5. Print the two by two table of runs that tells them apart.

The missing corners are rungs with one flag: `feed_forward --n-layer 3` has depth and no skips, `residual --n-layer 1`
has skips and no depth. With --write, the table is put between a Markdown file's two markers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data import LOSS_CSV
from helper_scripts.compare import change
from helper_scripts.ladder_table import mean_and_spread, show
from helper_scripts.results import load_results
from training.cli import errors_in_one_line, parse

NAME = "controls"  # of the markers
CORNERS = {
    ("no skips", "1 block"): "feed_forward",
    ("no skips", "3 blocks"): "feed_forward --n-layer 3",
    ("skips", "1 block"): "residual --n-layer 1",
    ("skips", "3 blocks"): "residual",
}


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    corpus: str | None = None  # the corpus whose runs to take; by default Tiny Shakespeare
    write: Path | None = None  # a Markdown file with the two markers, between which to put the table


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        corners, left_out = all_corners(options.loss_csv, options.corpus)
        show(two_by_two(corners), options.write, NAME)
        for line in left_out:
            print(line)


def all_corners(loss_csv: Path, corpus: str | None = None) -> tuple[dict[tuple[str, str], pd.Series], list[str]]:
    """The final losses of each corner, by seed, and what of the log is in none. Raises UserError for one without."""
    results = load_results(loss_csv, corpus, variants=True)
    return {corner: results.losses(label) for corner, label in CORNERS.items()}, results.left_out


def two_by_two(corners: dict[tuple[str, str], pd.Series]) -> str:
    """Means ± standard deviations, and at the edges what depth and skips change, with 95% intervals over seeds."""
    rows, columns = (list(dict.fromkeys(corner[k] for corner in corners)) for k in (0, 1))
    lines = [f"| | {' | '.join(columns)} | what depth changes |", "|---" * (len(columns) + 2) + "|"]
    for row in rows:
        cells = [mean_and_spread(corners[row, column]) for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} | {change(*(corners[row, column] for column in columns))} |")
    changes = [change(*(corners[row, column] for row in rows)) for column in columns]
    lines.append(f"| what skips change | {' | '.join(changes)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
