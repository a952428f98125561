"""The sections of docs/results.md: for each, its runs, commands, tables and picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from data import LOSS_CSV, UserError, read_log
from data.sources import TINY_SHAKESPEARE
from helper_scripts import controls
from helper_scripts.ladder_table import COLUMNS, markdown, markdown_table, mean_and_spread
from helper_scripts.models import config_of, join, rungs_of, start_of
from helper_scripts.plot_loss import picture_of
from helper_scripts.results import MIXTURE, Results, Selection, load_results
from training.overfitting import lowest_before_overfitting
from training.state import Evaluation

# Of ablation's --without. Without Muon, AdamW trains all weights, at the learning rate of rungs 8 to 11.
PARTS = ("rotary", "rms_norm", "qk_norm", "swiglu", "muon --learning-rate 0.003", "value_residual", "short_conv")
CHAIN = {  # the models of "the lowest loss": rung, seeds and flags; each learns from those above it (docs/log.md)
    "three teachers": ("modern", range(0, 3), "--preset quick$"),
    "three students of their size": (
        "distillation",
        range(3, 6),
        "--preset quick --steps 1960 --teachers modern.* --teacher-share 0.8$",
    ),
    "three larger students of these": (
        "distillation",
        range(6, 9),
        "--preset quick --steps 2940 --learning-rate 0.003 --n-embd 256 --teachers distillation.* --teacher-share 0.8$",
    ),
}
CHAIN_COMMANDS = [
    "python stages/modern.py --preset quick --seed 0    # and seeds 1, 2: A, B, C",
    "python stages/distillation.py --preset quick --steps 1960 --teacher-share 0.8 \\\n"
    "    --teachers A B C --seed 3    # and 4, 5: D, E, F",
    "python stages/distillation.py --preset quick --steps 2940 --teacher-share 0.8 --n-embd 256 \\\n"
    "    --learning-rate 3e-3 --teachers D E F --seed 6    # and 7, 8: G, H, I",
    "python helper_scripts/mixture.py G H I --loss-csv data/loss_gpt_pd.csv",
]
RATES = (1e-3, 3e-3, 1e-2)  # the learning rates that each rung was tried with
AT_MODERNS_RATE = ("averaging", "distillation", "ablation")  # these rungs were not tried with them


@dataclass(frozen=True)
class Section:
    """A part of the page. shown: the results in its tables and pictures; empty if the log has no such runs."""

    title: str
    trained_by: list[str]  # commands
    text: str = ""
    printed_by: list[str] = field(default_factory=list)  # commands
    body: list[str] = field(default_factory=list)  # tables and pictures, as Markdown
    shown: list[Results] = field(default_factory=list)
    without_runs: list[str] = field(default_factory=list)  # labels
    picture: Path | None = None  # of shown[0]

    def __str__(self) -> str:
        if not self.shown:
            more = " (and so on)" * (len(self.trained_by) > 1)
            return f"## {self.title}\n\nNo runs yet. To train them: `{self.trained_by[0]}`{more}\n"
        commands = "\n".join([*self.trained_by, *self.printed_by])
        notes = dict.fromkeys(line for results in self.shown for line in results.left_out)
        if self.without_runs:
            notes[f"no runs yet: {', '.join(f'`{label}`' for label in self.without_runs)}"] = None
        parts = [f"## {self.title}", f"```bash\n{commands}\n```", self.text, *self.body]
        parts.append("\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes))
        return "\n\n".join(filter(None, parts)) + "\n"


def ladder(log: Path) -> Section:
    rungs = (*rungs_of(None), "gpt")
    section = Section(
        "Rungs 1 to 8",
        [command("run_ladder", "--seeds 5"), command("run_ladder", "gpt --seeds 3")],
        "The column *write-up* has the losses of an earlier report on these stages: one run each, estimated on random "
        "batches.",
    )
    selection = Selection(log)
    return _with_table(section, rungs, selection, picture=_picture(selection))


def laptop_preset(log: Path) -> Section:
    rungs = tuple(label.split()[0] for label in rungs_of("laptop") if label.split()[0] != "ablation")
    section = Section(
        "Rungs 9 to 15, and those beside the ladder",
        [command("run_ladder", "--preset laptop --seeds 5")],
        f"{_size('laptop')} The rungs beside the ladder come last.",
    )
    selection = Selection(log, preset="laptop")
    return _with_table(section, rungs, selection, picture=_picture(selection))


def at_full_size(log: Path) -> Section:
    section = Section("Rungs 8 and 15 at rung 8's size", [command("run_ladder", "gpt modern --seeds 3")])
    columns = [column for column in COLUMNS if column != "write-up"]
    picture = _picture(Selection(log)).with_name("loss_curves_full_size.png")
    section = _with_table(section, ("gpt", "modern"), Selection(log), columns, picture=picture)
    settings = "`modern` has rung 8's settings, which were chosen for rung 8."
    return replace(section, text=" ".join([settings, *(_overfitting(section.shown[0]) if section.shown else [])]))


def _overfitting(results: Results) -> list[str]:
    """A sentence for each label whose mean curve overfits."""
    sentences = []
    for label, rows in results.curves().groupby("label"):
        means = rows.groupby("step")[["train_loss", "val_loss", "seconds"]].mean()
        evaluations = [Evaluation(*row) for row in means.itertuples(name=None)]
        if lowest := lowest_before_overfitting(evaluations):
            sentences.append(
                f"`{label}` overfits: the mean of its validation losses is lowest at step {lowest.step:,}, "
                f"{lowest.val_loss:.3f}; from there to the end it rises, while the train loss falls from "
                f"{lowest.train_loss:.3f} to {evaluations[-1].train_loss:.3f}."
            )
    return sentences


def epochs_preset(log: Path) -> Section:
    rungs = ("modern", "averaging", "distillation")
    section = Section(
        "Four epochs: averaging and distillation",
        [command("run_ladder", f"{' '.join(rungs)} --preset epochs --seeds 5")],
        f"{_size('epochs')} It shows what helps when text is scarce.",
    )
    return _with_table(section, rungs, Selection(log, preset="epochs"))


def quick_preset(log: Path) -> Section:
    section = Section("The quick preset", [command("run_ladder", "modern --preset quick --seeds 3")], _size("quick"))
    return _with_table(section, ("modern",), Selection(log, preset="quick"))


def lowest_loss(log: Path) -> Section:
    """A chain of models, and the mixture of the last three."""
    section = Section(
        "The lowest loss",
        CHAIN_COMMANDS,
        "A chain: each model learns from the text and from the three models in the row above it. Letters stand for "
        "checkpoints in `runs/`. Parameters and characters are for one model; in the last row, for all three. "
        "[log.md](log.md) says how the settings were chosen, and how long training took.",
    )
    runs = _chain(log)
    if not runs:
        return section
    lines = [("model", "validation loss", "bits per character", "train loss", "parameters", "characters"), ["---"] * 6]
    for name, part in runs.items():
        lines.append(
            (
                name,
                mean_and_spread(part["val_loss"]),
                f"{part['val_loss'].mean() / math.log(2):.3f}",
                f"{part['train_loss'].mean():.3f}",
                f"{part['parameters'].iloc[0]:,}",
                f"{part['tokens'].iloc[0] / 1e6:.2f} M",
            )
        )
    rows = pd.concat([part.assign(label=name) for name, part in runs.items()])
    return replace(
        section,
        body=[markdown(lines)],
        shown=[Results(rows, list(runs), TINY_SHAKESPEARE, "", [], log)],
    )


def _chain(log: Path) -> dict[str, pd.DataFrame]:
    """The final rows of the chain's models, and of the latest mixture of its last three; {} if any are missing."""
    rows = read_log(log)
    rows = rows[(rows["step"] == rows["steps"]) & (rows["corpus"] == TINY_SHAKESPEARE)]
    runs = {
        name: rows[(rows["rung"] == rung) & rows["seed"].isin(seeds) & rows["flags"].str.match(flags)]
        for name, (rung, seeds, flags) in CHAIN.items()
    }
    *_, last = runs
    one_of_each = list(CHAIN[last][1])
    for _, mixed in rows[rows["rung"] == MIXTURE][::-1].iterrows():
        named = runs[last][runs[last]["run"].isin(mixed["flags"].split())]
        if sorted(named["seed"]) == one_of_each:
            break
    else:
        return {}
    runs[last] = named
    runs = {name: part[part["shared_code"] == mixed["shared_code"]] for name, part in runs.items()}
    runs = {name: part.drop_duplicates("seed", keep="last") for name, part in runs.items()}
    if any(part.empty for part in runs.values()):
        return {}
    return runs | {"the last three, their probabilities averaged": mixed.to_frame().T}


def ablation(log: Path) -> Section:
    labels = tuple(f"ablation --without {part}" for part in PARTS)
    section = Section(
        "Ablation: modern without one part",
        [command("run_ladder", *quoted(("modern", *labels)), "--preset laptop --seeds 5")],
        "What each part gains at the end of the ladder: each row is `modern` without one part, compared with `modern`. "
        "Without Muon, the learning rate is 0.003, as in rungs 8 to 11. It was not chosen for this model, so this row "
        "changes two things.",
    )
    against = {"modern": None} | dict.fromkeys(labels, "modern")
    columns = [column for column in COLUMNS if column not in ("adds", "write-up", "characters")]
    return _with_table(section, tuple(against), Selection(log, preset="laptop"), columns, against)


def parts_apart(log: Path) -> Section:
    labels = tuple(dict.fromkeys(sum(controls.TABLES.values(), ())))
    section = Section(
        "Skip connections and depth, equal parameters, equal time",
        [command("run_ladder", *quoted(labels), "--seeds 5")],
        "Each row is compared with the one above it. FLOPs are for a whole run. For equal time, steps were chosen to "
        "take about as long as 5,000 of `pre_norm` on one core. At `feed_forward`'s learning rate, 0.003, three blocks "
        "without skip connections learn little more than the frequencies of the characters; so they have 0.001, the "
        "best of 0.001, 0.003 and 0.01 on held-out text.",
    )
    results = some_results(Selection(log), labels)
    tables = {name: rows for name, rows in controls.TABLES.items() if results and set(rows) <= set(results.order)}
    if not tables:
        return section
    return replace(
        section,
        printed_by=[command("controls")],
        body=[part for name, rows in tables.items() for part in (f"### {name}", controls.table(results, rows))],
        shown=[results],
        without_runs=[label for label in labels if label not in results.order],
    )


def learning_rates(log: Path) -> Section:
    """A table for the small rungs, and one at the laptop preset."""
    trained, printed, body, shown = [], [], [], []
    for preset in (None, "laptop"):
        start = start_of(preset, holdout=True)
        rungs = [rung for label in rungs_of(preset) if (rung := label.split()[0]) not in AT_MODERNS_RATE]
        results = some_results(
            Selection(log, preset=preset, holdout=True), [_at_rate(rung, rate) for rung in rungs for rate in RATES]
        )
        if results:
            rungs = [rung for rung in rungs if any(_at_rate(rung, rate) in results.order for rate in RATES)]
            printed.append(command("ladder_table", f"{start} --variants"))
            body += [f"### {'The laptop preset' if preset else 'Rungs 1 to 7'}", _rates_table(results, rungs, preset)]
            shown.append(results)
        seeds = f"--seeds {results.final()['seed'].nunique()}" if results else ""
        trained += [
            command("run_ladder", *quoted(_at_rate(rung, rate) for rung in rungs), start, seeds) for rate in RATES
        ]
    text = (
        "Losses on the held-out last tenth of the *train* split, so the validation split has no part in the choice. "
        "Every rung was tried with the same three learning rates. The lowest loss is in bold; its learning rate is the "
        "rung's own: by default for rungs 1 to 7, at the laptop preset for the others. `averaging`, `distillation` and "
        "`ablation` have `modern`'s; only the ablation without Muon has 0.003. With one seed, differences below 0.01 "
        "are within the spread of seeds. Where the highest rate is best, no higher one was tried. If a mean is very "
        "high, at least one of its runs diverged."
    )
    return Section("Learning rates", trained, text, printed, body, shown)


def _at_rate(rung: str, rate: float) -> str:
    return f"{rung} --learning-rate {rate:g}"


def _rates_table(results: Results, rungs: list[str], preset: str | None) -> str:
    header = ["rung", *(f"{rate:g}" for rate in RATES), "chosen"]
    lines = [header, ["---"] * len(header)]
    for rung in rungs:
        labels = {rate: _at_rate(rung, rate) for rate in RATES}
        losses = {rate: results.losses(label) for rate, label in labels.items() if label in results.order}
        best = min(losses, key=lambda rate: losses[rate].mean())
        cells = {rate: f"{loss.mean():.3f}" for rate, loss in losses.items()}
        cells[best] = f"**{cells[best]}**"
        cells = {rate: f"{cell} (n = {len(losses[rate])})" for rate, cell in cells.items()}
        own = config_of(join(rung, start_of(preset, holdout=False))).learning_rate
        lines.append([f"`{rung}`", *(cells.get(rate, "-") for rate in RATES), f"{own:g}"])
    return markdown(lines)


# Shared by the sections


def command(script: str, *words: str) -> str:
    return " ".join(["python", f"helper_scripts/{script}.py", *filter(None, words)])


def quoted(labels: Iterable[str]) -> list[str]:
    """Labels as a user types them: in quotes if they have flags."""
    return [f'"{label}"' if " " in label else label for label in labels]


def some_results(selection: Selection, labels: Iterable[str]) -> Results | None:
    """Results on Tiny Shakespeare, for those of `labels` that have runs; None if none has."""
    try:
        return load_results(replace(selection, corpus=TINY_SHAKESPEARE), tuple(labels), partly=True)
    except UserError:  # the log itself can be read (`all_sections`)
        return None


def _picture(selection: Selection) -> Path:
    """The picture of the page, whatever log it shows."""
    return picture_of(replace(selection, loss_csv=LOSS_CSV))


def _size(preset: str) -> str:
    """The model and the training of a preset, in a sentence."""
    config = config_of(join("gpt", start_of(preset, holdout=False)))
    return (
        f"`--preset {preset}`: {config.n_layer} blocks, {config.n_head} heads, {config.n_embd} channels, a context of "
        f"{config.block_size}, {config.steps:,} steps of {config.batch_size} x {config.block_size} characters, dropout "
        f"{config.dropout:g}."
    )


def _with_table(
    section: Section,
    labels: tuple[str, ...],
    selection: Selection,
    columns: Iterable[str] = (),
    before: dict[str, str | None] | None = None,
    picture: Path | None = None,
) -> Section:
    """`section` with a table of `labels`, and with `picture` a picture; unchanged if there are no runs."""
    results = some_results(selection, labels)
    there = [label for label in labels if results and label in results.order]
    if not there or (before and not any(before[label] for label in there)):
        return section
    start, rungs = start_of(selection.preset, selection.holdout), " ".join(["--rungs", *quoted(there)])
    if before is None:
        printed_by = [command("ladder_table", start, rungs)]
    else:
        before = {label: before[label] if before[label] in there else None for label in there}
        printed_by = [command("compare", *quoted(there), start)]
    body = [markdown_table(results, tuple(columns), before)]
    if picture:
        out = "" if picture == _picture(selection) else f"--out images/{picture.name}"
        printed_by.append(command("plot_loss", start, rungs, out))
        body.append(f"![{section.title}: loss curves, and the final losses](../images/{picture.name})")
    return replace(
        section,
        printed_by=printed_by,
        body=body,
        shown=[results],
        without_runs=[label for label in labels if label not in there],
        picture=picture,
    )


SECTIONS = (  # in the order of the page
    ladder,
    laptop_preset,
    at_full_size,
    epochs_preset,
    quick_preset,
    lowest_loss,
    ablation,
    parts_apart,
    learning_rates,
)
