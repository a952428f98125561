"""Draw the loss log: a panel of curves for each rung, and the ladder of final losses.

Curves are means over seeds, with a band of one standard deviation; the rung it is compared with is in grey. The ladder
has a point for each run, and the mean's 95% interval. Runs that are not comparable are left out, and reported.
"""

from __future__ import annotations

import math
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from data import LOSS_CSV, UserError
from data.files import atomic_write
from data.sources import TINY_SHAKESPEARE
from helper_scripts.compare import interval
from helper_scripts.models import is_beside
from helper_scripts.results import Results, Selection, load_results
from training.cli import errors_in_one_line, parse

IMAGES = Path(__file__).resolve().parent.parent / "images"
COLUMNS = 3  # of panels
TITLE, LABEL = 18, 30  # characters in a line: of a panel's title, and of a label beside the final losses
WIDTH = 5.0  # inches; so a picture that is shown as wide as a phone has letters as large as the text around it

X = {"steps": "step", "seconds": "seconds", "characters": "tokens"}  # columns of the log


@dataclass(frozen=True)
class Options(Selection):
    rungs: tuple[str, ...] = ()  # the rungs to draw, by name; by default all
    x: Literal["steps", "seconds", "characters"] = "steps"  # what the curves are drawn against
    out: Path | None = None  # the picture to write; its ending is the format: png, svg, pdf


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        if options.out:
            check_picture(options.out)
        results = load_results(options, options.rungs)
        write_plot(results, options.out or picture_of(replace(options, corpus=results.corpus)), x=options.x)


def picture_of(selection: Selection) -> Path:
    """The file of a selection's picture: in images/ for the published log, beside the log for any other.

    Each selection has its own. Without a corpus, it is Tiny Shakespeare's.
    """
    log = selection.loss_csv.resolve()
    folder, own = (IMAGES, "") if log == LOSS_CSV else (log.parent, log.stem)
    corpus = "" if selection.corpus in (None, TINY_SHAKESPEARE) else re.sub(r"\W+", "-", selection.corpus).strip("-")
    names = [own, corpus, selection.preset, "holdout" * selection.holdout, "variants" * selection.variants]
    return folder / f"{'_'.join(['loss_curves', *filter(None, names)])}.png"


def check_picture(out: Path) -> None:
    """Raises UserError for a file name whose ending is no kind of picture."""
    kinds = FigureCanvasBase.get_supported_filetypes()
    if out.suffix.lower().lstrip(".") not in kinds:
        raise UserError(f"--out {out} does not end in a kind of picture; use one of {', '.join(sorted(kinds))}")


def write_plot(results: Results, out: Path, *, x: str = "steps") -> None:
    """Write the picture of `results` to `out`, atomically, and print where it is and what was left out."""
    figure = draw(results, Figure(), x)
    try:
        with atomic_write(out) as file:
            figure.savefig(file, format=out.suffix.lower().lstrip("."), dpi=200, facecolor="white")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another picture with --out") from None
    runs = results.rows["run"].nunique()
    print(*results.left_out, f"drew {runs} runs of {len(results.order)} rungs on {results.corpus}: {out}", sep="\n")


def draw(results: Results, figure: Figure, x: str = "steps") -> Figure:
    """A panel of curves for each label of `results`, and below them the ladder of final losses."""
    import seaborn as sns  # takes seconds, and the processes of run_ladder.py import this file too

    order, rows = results.order, results.curves()
    # seeds take different times to the same step: their mean, so that the curves have one point there
    rows = rows.assign(x=rows.groupby(["label", "step"])[X[x]].transform("mean"))
    palette = dict(zip(order, sns.husl_palette(len(order), h=0.6, s=0.9, l=0.55), strict=True))
    evaluations = rows.groupby("label")["step"].nunique()
    panels = [label for label in order if evaluations[label] > 1]  # one point makes no curve
    lines = max(_lines(label, LABEL).count("\n") + 1 for label in order)
    heights = [1.0 + 1.5 * math.ceil(len(panels) / COLUMNS), 0.9 + (0.12 + 0.14 * lines) * len(order)]
    figure.set_size_inches(WIDTH, sum(heights))
    figure.set_layout_engine("constrained")
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        curves, ladder = figure.subfigures(2, 1, height_ratios=heights)
        if panels:
            _curves(curves, results, rows, panels, palette, x)
        _ladder(ladder.subplots(), results, palette)
    what = f"{results.corpus}{results.flags and f', {results.flags}'}"
    figure.suptitle(f"{what}:\nmeans over seeds, with a band of a standard deviation", fontsize="medium")
    return figure


def _curves(figure, results: Results, rows: pd.DataFrame, labels: list[str], palette: dict, x: str) -> None:
    """The panels, with the loss in nats per character against x. Axes have numbers if the next panel's axes differ."""
    import seaborn as sns

    panels = {}
    for number, label in enumerate(labels):
        panel = panels[number] = figure.add_subplot(math.ceil(len(labels) / COLUMNS), COLUMNS, number + 1)
        own, before = rows[rows["label"] == label], results.before(label)
        if before:
            sns.lineplot(rows[rows["label"] == before], x="x", y="val_loss", color="0.6", errorbar=None, ax=panel)
        colour = {"color": palette[label], "ax": panel}
        sns.lineplot(own, x="x", y="train_loss", linestyle=":", errorbar=None, **colour)
        sns.lineplot(own, x="x", y="val_loss", linewidth=2, errorbar="sd", **colour)
        peers = rows[rows["label"].isin(_peers(results, label))]
        panel.set(xlabel="", ylabel="")
        panel.set_ylim(_window(peers, results.losses(before).mean() if before else 0.0))
        panel.set_xlim(0, max(1e-9, (own if x == "seconds" else peers)["x"].max()))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.locator_params("x", nbins=4)
        panel.locator_params("y", nbins=5)
        losses = results.losses(label)
        spread = f" ± {losses.std():.3f}" if len(losses) > 1 else ""
        panel.set_title(f"{_lines(label, TITLE)}\n{losses.mean():.3f}{spread}", fontsize="medium")
    for number, panel in panels.items():
        left, below = panels.get(number - 1), panels.get(number + COLUMNS)
        panel.tick_params(
            labelleft=number % COLUMNS == 0 or left.get_ylim() != panel.get_ylim(),
            labelbottom=below is None or below.get_xlim() != panel.get_xlim(),
        )
        panel.set_xlabel("" if below else x)
    figure.supylabel("nats per character", fontsize="medium")
    lines = {"validation": {"linewidth": 2}, "train": {"linestyle": ":"}}
    if any(map(results.before, labels)):
        flags = " or flags" if " " in "".join(labels) else ""
        lines[f"validation of the rung{flags}\nit is compared with"] = {"color": "0.6"}
    handles = [Line2D([], [], **{"color": "black"} | style) for style in lines.values()]
    figure.legend(handles, list(lines), loc="outside lower center", ncols=3, fontsize="medium")


def _ladder(panel: Axes, results: Results, palette: dict) -> None:
    """The final validation loss of every run, and of each rung the mean with its 95% interval."""
    import seaborn as sns

    order = results.order
    which = {"x": "val_loss", "y": "label", "hue": "label", "order": order, "hue_order": order, "palette": palette}
    sns.stripplot(results.final(), **which, jitter=False, alpha=0.6, ax=panel)
    for row, label in enumerate(order):
        losses = results.losses(label)
        mean = losses.mean()
        if len(losses) > 1:
            low, high = interval(losses)
            panel.errorbar(mean, row + 0.25, xerr=[[mean - low], [high - mean]], color="black", capsize=3, marker="|")
        text = f"{mean:.3f} (n = {len(losses)})"
        panel.annotate(text, (1, row), (6, 0), ("axes fraction", "data"), "offset points", va="center")
    first = next((row for row, label in enumerate(order) if is_beside(label.split()[0])), 0)
    if first > 0:
        panel.axhline(first - 0.5, color="0.6", linewidth=0.8)  # below it are rungs beside the ladder
    panel.set_title("final validation loss of each run,\nand the mean's 95% interval", fontsize="medium")
    panel.set(xlabel="nats per character", ylabel="")
    panel.set_yticks(range(len(order)), [_lines(label, LABEL) for label in order])
    panel.set_ylim(len(order) - 0.5, -0.5)


def _lines(label: str, width: int) -> str:
    return textwrap.fill(label, width, break_on_hyphens=False)


def _peers(results: Results, label: str) -> set[str]:
    """The labels that were trained on about as many characters, within a factor of two: their panels share their axes.

    So a scaled-up rung, which reads many times as much and ends far lower, does not squeeze the others out of sight.
    """
    characters = results.final().groupby("label")["tokens"].max().clip(lower=1)
    return set(characters[(characters / characters[label]).between(0.5, 2)].index)


def _window(rows: pd.DataFrame, goal: float) -> tuple[float, float]:
    """From just below the lowest loss to just above those at a tenth of a run, and above `goal`.

    The start is left out: it is the same for all, and would take half of the height.
    """
    later = rows[rows["step"] >= rows["steps"] / 10][["train_loss", "val_loss"]]
    lowest, highest = later.min().min(), max(later.max().max(), goal)
    room = 0.06 * max(0.1, highest - lowest)
    return lowest - room, highest + room


if __name__ == "__main__":
    main()
