"""Print docs/results.md: every table of results, from the loss log. With --write, put it in its place.

--write also draws the pictures of the page, and puts the first table, with fewer columns, into README.md. The same log
and code always give the same page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data import LOSS_CSV, UserError, read_log
from data.files import atomic_write
from helper_scripts.ladder_table import markdown_table
from helper_scripts.markers import write_between_markers
from helper_scripts.plot_loss import write_plot
from helper_scripts.sections import SECTIONS, Section
from training.cli import errors_in_one_line, parse
from training.provenance import ROOT

PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
README_COLUMNS = ("rung", "adds", "validation loss", "parameters", "FLOPs a character")

HEAD = """\
# Results

Written by `python helper_scripts/results_page.py --write` from [the log of losses](../data/loss_gpt_pd.csv).

Losses are in nats per character, on the whole validation split (the last tenth of the text) unless a section says
otherwise. Bits per character are nats / ln 2. ± is the standard deviation over n seeds. A change is the mean of the
differences seed by seed, over the n seeds that both rungs have, with Student's 95% interval. If the interval contains
zero, these seeds cannot tell the two apart. FLOPs are for training: the matmuls and convolutions of forward, backward
and optimizer; for `distillation`, without those of its teacher. Characters are those trained on, with repeats.
"""


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    write: bool = False  # write docs/results.md, its pictures and README's table, instead of printing the page


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        sections = all_sections(options.loss_csv)
        if options.write:
            write(sections)
        else:
            print(page(sections), end="")


def all_sections(log: Path) -> list[Section]:
    """Raises UserError for a log that is missing or damaged."""
    read_log(log)
    return [section(log) for section in SECTIONS]


def page(sections: Iterable[Section]) -> str:
    rows = [results.final() for section in sections for results in section.shown]
    return "\n".join([HEAD, *([_provenance(pd.concat(rows))] if rows else []), *map(str, sections)])


def readme_table(sections: list[Section]) -> str | None:
    """README's table: that of the first section, with fewer columns."""
    return markdown_table(sections[0].shown[0], README_COLUMNS) if sections[0].shown else None


def write(sections: list[Section]) -> None:
    """Put the page, its pictures and README's table in their places. Raises UserError if that fails."""
    if table := readme_table(sections):
        write_between_markers(README, {"ladder table": table})
    for section in sections:
        if section.picture:
            write_plot(section.shown[0], section.picture)
    try:
        with atomic_write(PAGE) as file:
            file.write(page(sections).encode())
    except OSError as error:
        raise UserError(f"cannot write {PAGE}: {error.strerror}") from None
    print(f"wrote {PAGE} and the table of {README}")


def _provenance(final: pd.DataFrame) -> str:
    """The text and the code of the runs; each run is counted once."""

    def values(column: str) -> str:
        return ", ".join(sorted(set(final[column])))

    return (
        f"The page shows {final['run'].nunique()} runs on {values('corpus')} (sha256 {values('corpus_sha256')}...), of "
        f"commit {values('commit')}, shared code {values('shared_code')}, torch {values('torch')}.\n"
    )


if __name__ == "__main__":
    main()
