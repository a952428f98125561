"""How much of a rung's gain is its size, or its time? The ladder again, at equal parameters and at equal training time.

Upper rungs are larger and slower than lower ones. Here the lower ones are made wider, until they have as many
parameters as pre_norm, or trained for longer, until they have had as much time. It takes no rungs of its own, only
flags: `run_ladder.py "multi_head --n-embd 88" --seeds 5`. With --write, the tables go between a page's two markers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data import LOSS_CSV
from helper_scripts.compare import change
from helper_scripts.ladder_table import mean_and_spread, show
from helper_scripts.results import Results, load_results
from training.cli import errors_in_one_line, parse

NAME = "equal readings"  # of the markers

PARAMETERS = (  # 42,000, as near as a width that four heads can share comes; a bigram's table has one size only
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


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    corpus: str | None = None  # the corpus whose runs to take; by default Tiny Shakespeare
    write: Path | None = None  # a Markdown file with the two markers, between which to put the tables


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        results = load_results(options.loss_csv, options.corpus, variants=True)
        show(both_readings(results), options.write, NAME)
        print(*results.left_out, sep="\n", end="\n" if results.left_out else "")


def both_readings(results: Results) -> str:
    """Raises UserError where the log has no runs of one of the settings."""
    return "\n\n".join(
        (
            reading(results, PARAMETERS, "| at equal parameters | parameters |", _parameters),
            reading(results, TIME, "| at equal time | seconds |", _seconds),
        )
    )


def reading(results: Results, labels: tuple[str, ...], title: str, size: Callable[[pd.DataFrame, str], float]) -> str:
    """A row for each of `labels`, with its size, and what it changes about the one before."""
    lines = [f"{title} validation loss | change, and its 95% interval |", "|---|---|---|---|"]
    before = None
    for label in labels:
        losses = results.losses(label)
        changed = "" if before is None else change(before, losses)
        lines.append(f"| `{label}` | {size(results.final(), label):,.0f} | {mean_and_spread(losses)} | {changed} |")
        before = losses
    return "\n".join(lines)


def _parameters(final: pd.DataFrame, label: str) -> float:
    return final[final["label"] == label]["parameters"].iloc[0]


def _seconds(final: pd.DataFrame, label: str) -> float:
    """Of as many steps, by what a step of the plain rung took: those were all timed alike, on one machine."""
    plain = final[final["label"] == label.split()[0]]
    return (plain["seconds"] / plain["steps"]).mean() * final[final["label"] == label]["steps"].iloc[0]


if __name__ == "__main__":
    main()
