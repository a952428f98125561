"""Draw the loss log: train and validation loss against steps, and the ladder of final losses.

Curves are means over the seeds there are, with a band of one standard deviation. Runs that may not be compared are
left out, and named.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from data import LOSS_CSV, UserError
from helper_scripts.results import Results, load_results
from training.cli import errors_in_one_line, parse

IMAGE = Path(__file__).resolve().parent.parent / "images" / "loss_curves.png"


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to draw
    out: Path = IMAGE  # the picture to write; its ending says which kind
    corpus: str | None = None  # the corpus whose runs to draw; by default Tiny Shakespeare
    variants: bool = False  # draw runs with other settings than their rung's own as curves of their own
    show: bool = False  # open a window as well


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        check_picture(options.out)
        results = load_results(options.loss_csv, options.corpus, options.variants)
        if not options.show:
            write_plot(results, options.out)
        else:
            import matplotlib.pyplot as plt  # which looks for a display

            write_plot(results, options.out, plt.figure())
            plt.show()


def check_picture(out: Path) -> None:
    """Raises UserError for a file name whose ending is no kind of picture."""
    kinds = FigureCanvasBase.get_supported_filetypes()
    if out.suffix.lower().lstrip(".") not in kinds:
        raise UserError(f"--out {out} does not end in a kind of picture; use one of {', '.join(sorted(kinds))}")


def write_plot(results: Results, out: Path, figure: Figure | None = None) -> None:
    """Write the picture of `results` to `out` and say on the terminal where it went and what is not in it."""
    picture = io.BytesIO()
    draw(results, figure or Figure()).savefig(picture, format=out.suffix.lower().lstrip("."), dpi=150)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise UserError(f"cannot write the picture {out}: {error.strerror}; choose another with --out") from None
    for line in results.left_out:
        print(line)
    print(f"drew {results.rows['run'].nunique()} runs of {len(results.order)} rungs on {results.corpus}: {out}")


def draw(results: Results, figure: Figure) -> Figure:
    """Three panels: validation loss, train loss, and the final validation losses as a ladder."""
    import seaborn as sns  # takes seconds, and the processes of run_ladder.py import this file too

    order, final = results.order, results.final()
    palette = dict(zip(order, sns.color_palette("turbo", len(order)), strict=True))
    means = final.groupby("label")["val_loss"].agg(["mean", "std", "count"])
    figure.set_size_inches(16, 7)
    figure.set_layout_engine("constrained")
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook"):
        panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))

    for panel, column, title in ((panels[0], "val_loss", "validation"), (panels[1], "train_loss", "train")):
        sns.lineplot(
            results.rows, x="step", y=column, hue="label", hue_order=order, palette=palette, errorbar="sd", ax=panel
        )
        # the start, ln 65 for all, would take half the height; what differs is below
        panel.set(title=f"{title} loss", xlabel="step", ylabel="nats per character", ylim=_window(results))
        panel.get_legend().remove()
    handles = panels[0].get_lines()[: len(order)]
    texts = [f"{label}  {means.loc[label, 'mean']:.3f}" for label in order]
    figure.legend(handles, texts, title="rung and its final validation loss", loc="outside lower center", ncols=4)

    sns.stripplot(
        final, x="val_loss", y="label", hue="label", order=order, hue_order=order, palette=palette, ax=panels[2]
    )
    for row, label in enumerate(order):
        mean, spread, n = means.loc[label]
        text = f"{mean:.3f}" + (f" ± {spread:.3f}" if n > 1 else "")
        panels[2].annotate(text, (mean, row), xytext=(0, 12), textcoords="offset points", ha="center", fontsize="small")
    panels[2].set(title="final validation loss of each run", xlabel="nats per character", ylabel="")
    panels[2].margins(x=0.18)
    figure.suptitle(f"What each part of a GPT buys: {results.corpus}, mean and standard deviation over seeds")
    return figure


def _window(results: Results) -> tuple[float, float]:
    """From just below the lowest loss of all to somewhat above the highest final one."""
    final = results.final()[["train_loss", "val_loss"]]
    lowest, highest = final.min().min(), final.max().max()
    room = max(0.1, highest - lowest)
    return lowest - 0.06 * room, highest + 0.5 * room


if __name__ == "__main__":
    main()
