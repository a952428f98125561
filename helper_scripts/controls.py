"""Is it the part, or what comes with it? Print three tables that tell: skips by depth, equal parameters, equal time.

Rung 5 brings skips and depth at once; the first table has each without the other. Upper rungs are larger and slower
than lower ones; in the others the lower ones have more channels, until they have as many parameters as pre_norm, or
more steps, until they take as long. All are rungs with flags: `run_ladder.py "residual --n-layer 1" --seeds 5`. With
--write, each table goes between the two markers of its name in a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data import LOSS_CSV
from helper_scripts.compare import change
from helper_scripts.ladder_table import mean_and_spread, show
from helper_scripts.results import Results, Selection, load_results
from training.cli import errors_in_one_line, parse

CORNERS = (("feed_forward", "feed_forward --n-layer 3"), ("residual --n-layer 1", "residual"))
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


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    corpus: str | None = None  # the corpus whose runs to take; by default Tiny Shakespeare
    write: Path | None = None  # a Markdown file with the markers, between which to put the tables


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        plain = {label.split()[0] for label in TIME}
        labels = tuple(dict.fromkeys((*sum(CORNERS, ()), *PARAMETERS, *TIME, *sorted(plain))))
        results = load_results(Selection(options.loss_csv, options.corpus), labels=labels)
        for name, table in all_tables(results).items():
            show(f"{table}\n" if options.write is None else table, options.write, name)
        print("".join(f"{line}\n" for line in results.left_out), end="")


def all_tables(results: Results) -> dict[str, str]:
    """By the name of their markers. Raises UserError where the log has no runs of one of the settings."""
    return {
        "skips by depth": skips_by_depth(results),
        "equal parameters": one_by_one(results, PARAMETERS, "parameters"),
        "equal time": one_by_one(results, TIME, "seconds"),
    }


def skips_by_depth(results: Results) -> str:
    """Means ± standard deviations, and at the edges what depth and skips change, with 95% intervals over seeds."""
    lines = ["| | 1 block | 3 blocks | what depth changes |", "|---|---|---|---|"]
    corners = [[results.losses(label) for label in row] for row in CORNERS]
    for name, (one, three) in zip(("no skips", "skips"), corners, strict=True):
        lines.append(f"| {name} | {mean_and_spread(one)} | {mean_and_spread(three)} | {change(one, three)} |")
    changes = [change(without, skips) for without, skips in zip(*corners, strict=True)]
    return "\n".join([*lines, f"| what skips change | {' | '.join(changes)} | |"])


def one_by_one(results: Results, labels: tuple[str, ...], size: str) -> str:
    """A row for each of `labels`, with its size, and what it changes about the one before.

    Seconds are those of as many steps of the plain rung: only these were all timed alike, on one machine.
    """
    lines = [f"| | {size} | validation loss | change, and its 95% interval |", "|---|---|---|---|"]
    for before, label in zip((None, *labels), labels, strict=False):
        runs, losses = results.runs(label), results.losses(label)
        amount = runs["parameters"].iloc[0]
        if size == "seconds":
            plain = results.runs(label.split()[0])
            amount = (plain["seconds"] / plain["steps"]).mean() * runs["steps"].iloc[0]
        changed = change(results.losses(before), losses) if before else ""
        lines.append(f"| `{label}` | {amount:,.0f} | {mean_and_spread(losses)} | {changed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
