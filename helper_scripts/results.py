"""The runs of the loss log that may be averaged and compared, and what had to be left out.

Runs are averaged if corpus, settings, precision and code are the same; rungs are compared if their shared code is the
same. The runs of a rung are its finished runs with the settings and the code that its file has now; if there are none
of that code, those of the latest code that has runs. Everything else is left out, and every command says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from data import LOSS_CSV, UserError, read_log
from data.files import printable
from data.sources import TINY_SHAKESPEARE
from helper_scripts.models import RUNGS, check_rungs, config_of, join, one_line, rung_before, rung_path, start_of
from training.config import changed_flags, config_hash
from training.presets import Preset
from training.provenance import rung_code, shared_code

START = re.compile(r"(--preset \S+)? ?(--holdout)? ?")  # of a run's flags, as `start_of` makes them
CODE = ["rung_code", "shared_code"]
MIXTURE = "mixture"  # in the log's column `rung`: the mean of several runs' probabilities, not a run of the ladder


@dataclass(frozen=True)
class Selection:
    """Which runs of the log to use."""

    loss_csv: Path = LOSS_CSV  # the log to read
    corpus: str | None = None  # use runs on this corpus; by default Tiny Shakespeare
    preset: Preset | None = None  # use runs with this preset, instead of the rungs' own settings
    holdout: bool = False  # use runs with --holdout, which validate on the end of the train split
    variants: bool = False  # also use runs with other flags; each set of flags is kept apart


@dataclass(frozen=True)
class Results:
    """rows: the comparable rows of the log, with a column `label`: the rung, and its flags besides the selection's.

    order: the labels, in ladder order. corpus: the one they were all trained on. flags: the selection's preset and
    --holdout, as typed, which all labels have in common. left_out: a line for each reason to leave out runs, and for
    each difference among the others. log: the log's path.
    """

    rows: pd.DataFrame
    order: list[str]
    corpus: str
    flags: str
    left_out: list[str]
    log: Path

    def final(self) -> pd.DataFrame:
        """The last row of each run: (label, seed) is unique."""
        return self.rows[self.rows["step"] == self.rows["steps"]]

    def curves(self) -> pd.DataFrame:
        """The rows at the steps that all runs of a label have: a mean over them is always one over the same runs."""
        there = self.rows.groupby(["label", "step"])["run"].transform("nunique")
        return self.rows[there == self.rows.groupby("label")["run"].transform("nunique")]

    def runs(self, label: str) -> pd.DataFrame:
        """The last row of each run of `label`. Raises UserError if there are none."""
        if label not in self.order:
            near = [other for other in self.order if other.split()[0] == label.split(" ")[0]] or self.order
            raise UserError(f"{self.log} has no finished runs of {self.full(label)!r}; it has {', '.join(near)}")
        final = self.final()
        return final[final["label"] == label]

    def losses(self, label: str) -> pd.Series:
        """The final validation losses of `label`, by seed. Raises UserError if there are none."""
        return self.runs(label).set_index("seed")["val_loss"]

    def full(self, label: str) -> str:
        """`label` with the flags that all have in common: as `config_of` takes it."""
        return join(label, self.flags)

    def before(self, label: str) -> str | None:
        """The label that `label` is compared with; None if there is none with the same shared code."""
        before = rung_before(label, self.order)
        return before if before and self.comparable(before, label) else None

    def comparable(self, label: str, other: str) -> bool:
        """Whether both are of the same shared code, and were validated on the same split."""
        one, two = self.runs(label).iloc[0], self.runs(other).iloc[0]
        return one["shared_code"] == two["shared_code"] and is_held_out(one) == is_held_out(two)


def is_held_out(run: pd.Series) -> bool:
    """Whether a run of the log was validated on the end of the train split."""
    return "--holdout" in run["flags"].split()


def load_results(selection: Selection, labels: tuple[str, ...] = (), *, partly: bool = False) -> Results:
    """Select from the log.

    labels: use these only; a rung, perhaps with flags, perhaps followed by @COMMIT for the runs of that commit. Runs of
    other labels are then not reported as left out. Raises UserError for a log that is missing, damaged, or has nothing
    to show, and for a label without finished runs; with partly, only if no label has any.
    """
    report = _Report()
    corpus, rows = _of_corpus(selection, report)
    if labels:
        report.left_out.clear()

    chosen, flags = {}, start_of(selection.preset, selection.holdout)
    for label in labels or _labels(rows, flags, selection.variants):
        runs, now = _of_settings(rows, label, flags, report.notes)
        rows = rows if labels else rows[~rows["run"].isin(runs["run"])]
        runs = _averaged(runs, now, label, report)
        if len(runs):
            chosen[label] = runs.assign(label=label)
    if not labels:
        settings = flags or "their rung has in its file"
        report.left_out[f"with settings other than {settings}"] = rows["run"].nunique()

    if not chosen:
        why = "; ".join(report.lines()) or f"it has no runs of {', '.join(labels)}"
        raise UserError(f"nothing to show from {selection.loss_csv}: {why}")
    order = sorted(chosen, key=lambda label: RUNGS.index(re.split("[ @]", label)[0]))
    results = Results(pd.concat(chosen.values()), order, corpus, flags, report.lines(), selection.loss_csv)
    for label in () if partly else labels:
        results.runs(label)
    results.left_out.extend(_differences(results, all_rungs=not labels))
    return results


@dataclass
class _Report:
    """What a selection left out: how many runs, by reason; the labels of earlier code; other notes."""

    left_out: Counter = field(default_factory=Counter)
    earlier: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def keep(self, rows: pd.DataFrame, mask: pd.Series, reason: str) -> pd.DataFrame:
        self.left_out[reason] += rows[~mask]["run"].nunique()
        return rows[mask]

    def lines(self) -> list[str]:
        counts = [(reason, count) for reason, count in self.left_out.items() if count]
        lines = [f"left out {count} run{'s' * (count > 1)} {reason}" for reason, count in counts] + self.notes
        if self.earlier:
            names = ", ".join(self.earlier)
            lines.append(f"runs of earlier code, because there are none of the present code: {names}")
        return lines


def _of_corpus(selection: Selection, report: _Report) -> tuple[str, pd.DataFrame]:
    """The corpus to show, and the rows of the ladder's rungs on its latest text."""
    rows = read_log(selection.loss_csv)
    rows = rows[rows["rung"] != MIXTURE]
    if rows.empty:
        raise UserError(f"the loss log {selection.loss_csv} has no rows yet; train a rung first")
    for column in ("run", "rung", "corpus", "flags", "precision", "device", "commit"):
        rows[column] = rows[column].map(printable)
    corpus, keep = _corpus(rows["corpus"], selection), report.keep
    rows = keep(rows, rows["corpus"] == corpus, f"on another corpus (--corpus shows them; here: {corpus})")
    rows = keep(rows, rows["corpus_sha256"] == rows["corpus_sha256"].iloc[-1], f"on another text of the name {corpus}")
    return corpus, keep(rows, rows["rung"].isin(RUNGS), "of rungs that the ladder does not name (stages/__init__.py)")


def _averaged(runs: pd.DataFrame, now: list[str], label: str, report: _Report) -> pd.DataFrame:
    """The finished runs that may be averaged: of one code and precision, one a seed. now: the present code's hashes."""
    keep = report.keep
    runs = keep(runs, runs.groupby("run")["step"].transform("max") == runs["steps"], "that did not finish")
    if runs.empty:
        return runs
    if not (runs[CODE] == now).all(axis=1).any():
        now = runs[CODE].iloc[-1].tolist()
        if "@" not in label:
            report.earlier.append(label)
    runs = keep(runs, (runs[CODE] == now).all(axis=1), "of other code, of the rung or shared")
    seeds = runs[::-1].groupby("precision", sort=False)["seed"].nunique()  # the latest precision first, for a tie
    runs = keep(runs, runs["precision"] == seeds.idxmax(), "in another precision than most of their rung's")
    latest = runs.groupby("seed")["run"].transform("last")
    return keep(runs, runs["run"] == latest, "that a later one with the same seed replaces")


def _differences(results: Results, all_rungs: bool) -> Iterator[str]:
    """A line for each column in which the runs differ, and one for neighbours that may not be compared."""
    for column in ("precision", "device"):
        counts = results.rows.groupby(column)["run"].nunique()
        if len(counts) > 1:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
            yield f"these runs differ in {column}, which may explain a part of their differences: {kinds}"
    pairs = [(label, rung_before(label, results.order)) for label in results.order if all_rungs]
    if apart := [f"{label} with {before}" for label, before in pairs if before and not results.before(label)]:
        yield f"not compared, because their shared code differs: {', '.join(apart)}"


def _corpus(names: pd.Series, selection: Selection) -> str:
    """The corpus to show, by its name in the log; for a file, the digits after its name may be left out."""
    asked = selection.corpus
    if asked is None:
        return TINY_SHAKESPEARE if TINY_SHAKESPEARE in set(names) else names.iloc[-1]
    there = sorted({name for name in names if asked in (name, name.rpartition(" (")[0])})
    if len(there) == 1 or asked in there:
        return asked if asked in there else there[0]
    logged = ", ".join(there or sorted(set(names)))
    which = "more than one" if there else "no"
    raise UserError(f"the loss log {selection.loss_csv} has {which} corpus {asked}; choose one of {logged}")


def _labels(rows: pd.DataFrame, flags: str, variants: bool) -> list[str]:
    """The rungs of `rows`, in ladder order; each followed by its variants: what else stands behind `flags`."""
    labels = []
    for rung in (rung for rung in RUNGS if rung in set(rows["rung"])):
        typed = sorted(set(rows[rows["rung"] == rung]["flags"])) if variants else []
        starts = [start for each in typed if (start := START.match(each))[0].strip() == flags]
        own = [start.string[start.end() :] for start in starts]
        labels += [rung, *(f"{rung} {each}" for each in own if each)]
    return labels


def _of_settings(rows: pd.DataFrame, label: str, flags: str, notes: list[str]) -> tuple[pd.DataFrame, list]:
    """The rows with the settings of `label`, and the hashes of the present code, of the rung and shared.

    For a commit, and for flags that the rung no longer has, the flags are compared as text; the latest settings count.
    """
    name, at, commit = label.partition("@")
    if at and not commit:
        raise UserError(f"{label} names no commit; write {name}@COMMIT")
    rung, full = name.split(" ")[0], join(name, flags)
    check_rungs(rung)
    config, code = None, None
    rows = rows[(rows["rung"] == rung) & rows["commit"].str.startswith(commit)]
    if rows.empty:
        return rows, []
    try:
        code = rung_code(rung_path(rung))
        config = config_of(full)
    except UserError:  # a setting that is gone
        pass
    except Exception as error:
        notes.append(f"{rung} as it was logged last, for its file fails now: {type(error).__name__}: {one_line(error)}")
    if config and config.precision != "auto":
        rows = rows[rows["precision"] == config.precision]
    if config and not at:
        return rows[rows["config"] == config_hash(config)], [code, shared_code()]
    rows = rows[rows["flags"] == (changed_flags(config) if config else full.partition(" ")[2])]
    latest = rows["config"].iloc[-1] if len(rows) else ""
    return rows[rows["config"] == latest], [code, shared_code()]
