"""Draw the loss log: a panel of curves for each rung, and the ladder of final losses.

Curves are means over the seeds there are, with a band of one standard deviation; in grey beside them the rung before.
The ladder has a point a run, and the mean's 95% interval. Runs that may not be compared are left out, and named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from scipy import stats

from data import UserError
from data.files import atomic_write
from helper_scripts.results import Results, Selection, load_results
from training.cli import errors_in_one_line, parse
from training.presets import Preset

IMAGES = Path(__file__).resolve().parent.parent / "images"
COLUMNS = 4  # of panels

X = {"steps": "step", "seconds": "seconds", "characters": "tokens"}  # columns of the log

# The validation loss of the table of pairs that are counted in the train split, each count one higher, by the text's
# hash: no bigram model can do much better.
BIGRAM_FLOORS = {"86c4e6aa9db7": 2.4819}
FLOOR = {"color": "black", "linestyle": "--", "linewidth": 1}


@dataclass(frozen=True)
class Options(Selection):
    rungs: tuple[str, ...] = ()  # the rungs to draw, by name; none is all
    x: Literal["steps", "seconds", "characters"] = "steps"  # what the curves are drawn against
    out: Path | None = None  # the picture to write; its ending says which kind: png, svg, pdf
    variants: bool = False  # draw runs with other flags too, each set of them in a panel of its own


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        out = options.out or picture_of(options.preset, options.variants, options.holdout)
        check_picture(out)
        results = load_results(options, variants=options.variants).only(options.rungs)
        write_plot(results, out, x=options.x)


def picture_of(preset: Preset | None, variants: bool = False, holdout: bool = False) -> Path:
    """Where the picture of a preset is kept; with other flags in it, or validated otherwise, it is another."""
    names = ["loss_curves", *([preset] if preset else []), *["holdout"] * holdout, *["variants"] * variants]
    return IMAGES / f"{'_'.join(names)}.png"


def check_picture(out: Path) -> None:
    """Raises UserError for a file name whose ending is no kind of picture."""
    kinds = FigureCanvasBase.get_supported_filetypes()
    if out.suffix.lower().lstrip(".") not in kinds:
        raise UserError(f"--out {out} does not end in a kind of picture; use one of {', '.join(sorted(kinds))}")


def write_plot(results: Results, out: Path, *, x: str = "steps") -> None:
    """Write the picture of `results` to `out` and say on the terminal where it went and what is not in it."""
    save_picture(draw(results, Figure(), x), out)
    for line in results.left_out:
        print(line)
    print(f"drew {results.rows['run'].nunique()} runs of {len(results.order)} rungs on {results.corpus}: {out}")


def save_picture(figure: Figure, out: Path) -> None:
    """Write `figure`, whole or not at all, as the kind of picture that the ending of `out` says."""
    try:
        with atomic_write(out) as file:
            figure.savefig(file, format=out.suffix.lower().lstrip("."), dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another picture with --out") from None


def draw(results: Results, figure: Figure, x: str = "steps") -> Figure:
    """A panel of curves for each label of `results`, and at the right the ladder of final losses."""
    import seaborn as sns  # takes seconds, and the processes of run_ladder.py import this file too

    order, rows = results.order, results.rows.copy()
    # seeds take different times to the same step: their mean, so that the curves have one point there
    rows["x"] = rows.groupby(["label", "step"])[X[x]].transform("mean")
    palette = dict(zip(order, sns.husl_palette(len(order), h=0.6, s=0.9, l=0.55), strict=True))
    evaluations = rows.groupby("label")["step"].nunique()
    panels = [label for label in order if evaluations[label] > 1]  # one point makes no curve
    columns = max(1, min(COLUMNS, len(panels)))
    height = max(1, math.ceil(len(panels) / columns))
    figure.set_size_inches(3.1 * columns + 4.6, max(4.4, 3.3 * height + 0.9))
    figure.set_layout_engine("constrained")
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        grid = figure.add_gridspec(height, columns + 1, width_ratios=[1] * columns + [1.5])
        for number, label in enumerate(panels):
            panel = figure.add_subplot(grid[number // columns, number % columns])
            before = results.before(label)
            _curves(sns, panel, results, rows, label, before, palette[label])
            peers = rows[rows["label"].isin(_peers(results, label))]
            goal = results.losses(before).mean() if before else 0.0
            panel.set(xlabel=x, ylabel="nats per character" if number % columns == 0 else "")
            panel.set_ylim(_window(peers, goal))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            own = rows[rows["label"] == label] if x == "seconds" else peers
            panel.set_xlim(0, max(1e-9, own["x"].max()))
        _ladder(sns, figure.add_subplot(grid[:, columns]), results, palette)
    lines = {"validation": {"linewidth": 2}, "train": {"linestyle": ":"}}
    if compared := [(label, before) for label in panels if (before := results.before(label))]:
        plain = any(label.split()[:1] == [before] for label, before in compared)
        lines["validation of the rung before" + ", or without the flags" * plain] = {"color": "0.6"}
    if _floor_of(results):
        lines["bigram by counting"] = FLOOR
    handles = [Line2D([], [], **{"color": "black"} | style) for style in lines.values()]
    figure.legend(handles, list(lines), loc="outside lower center", ncols=4)
    what = f"{results.corpus}{results.flags and f', {results.flags}'}"
    figure.suptitle(f"What each part of a GPT buys: {what}, mean and standard deviation over seeds")
    return figure


def _curves(sns, panel: Axes, results: Results, rows: pd.DataFrame, label: str, before: str | None, colour) -> None:
    """Of one rung, and of the one before it."""
    own, losses = rows[rows["label"] == label], results.losses(label)
    if before is not None:
        sns.lineplot(rows[rows["label"] == before], x="x", y="val_loss", color="0.6", errorbar=None, ax=panel)
    sns.lineplot(own, x="x", y="train_loss", color=colour, linestyle=":", errorbar=None, ax=panel)
    sns.lineplot(own, x="x", y="val_loss", color=colour, linewidth=2, errorbar="sd", ax=panel)
    if label == "bigram" and (floor := _floor_of(results)):
        panel.axhline(floor, **FLOOR)
    panel.set_title(f"{label}\n{losses.mean():.3f}{_spread(losses)}", fontsize="medium")


def _ladder(sns, panel: Axes, results: Results, palette: dict) -> None:
    """The final validation loss of every run, and of each rung the mean with its 95% interval."""
    order = results.order
    which = {"x": "val_loss", "y": "label", "hue": "label", "order": order, "hue_order": order, "palette": palette}
    sns.stripplot(results.final(), **which, jitter=False, alpha=0.6, ax=panel)
    for row, label in enumerate(order):
        losses = results.losses(label)
        mean, low, high = losses.mean(), losses.min(), losses.max()
        if len(losses) > 1 and low < high:
            low, high = stats.t.interval(0.95, len(losses) - 1, mean, stats.sem(losses))
            panel.errorbar(mean, row + 0.25, xerr=[[mean - low], [high - mean]], color="black", capsize=3, marker="|")
        panel.annotate(f"{mean:.3f}", (mean, row), xytext=(0, 8), textcoords="offset points", ha="center")
    if floor := _floor_of(results):
        panel.axvline(floor, **FLOOR)
    panel.set(title="final validation loss of each run,\nand the mean's 95% interval", xlabel="nats per character")
    panel.set(ylabel="")
    panel.margins(x=0.15)


def _spread(losses: pd.Series) -> str:
    return (f" ± {losses.std():.3f}" if len(losses) > 1 else "") + f" (n = {len(losses)})"


def _floor_of(results: Results) -> float | None:
    """The bigram's floor, if it is among what is drawn and its floor is known for this text."""
    return BIGRAM_FLOORS.get(results.rows["corpus_sha256"].iloc[0]) if "bigram" in results.order else None


def _peers(results: Results, label: str) -> set[str]:
    """The labels that were trained on about as many characters, within a factor of two: their panels share their axes.

    So a scaled-up rung, which reads many times as much and ends far lower, does not squeeze the others out of sight.
    """
    characters = results.final().groupby("label")["tokens"].max().clip(lower=1)
    return set(characters[(characters / characters[label]).between(0.5, 2)].index)


def _window(rows: pd.DataFrame, goal: float) -> tuple[float, float]:
    """From just below the lowest loss to just above those at a tenth of a run, and above `goal`.

    The start, which is alike for all, is left out: it would take half the height, and what differs is below.
    """
    later = rows[rows["step"] >= rows["steps"] / 10][["train_loss", "val_loss"]]
    lowest, highest = later.min().min(), max(later.max().max(), goal)
    room = 0.06 * max(0.1, highest - lowest)
    return lowest - room, highest + room


if __name__ == "__main__":
    main()
