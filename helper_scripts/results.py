"""The rows of the loss log that may stand side by side, and what had to be left out.

Runs are of one kind where rung, settings, size, precision and corpus are the same. Of those only finished runs count,
and of several with the same seed the latest. Everything else is left out, and every command that draws or prints says
so; and where runs of different rungs were not trained in one precision or on one kind of device, it says that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from data import UserError, read_log
from data.sources import TINY_SHAKESPEARE
from stages import LADDER

RUNGS = tuple(module.rpartition(".")[2] for module in LADDER)  # as the log names them: "residual", "gpt"

# Settings at which rungs are held against one another, as the flags that lead there. The rungs from the eighth on have
# all three; at their own settings each of them takes an hour or more.
Budget = Literal["own", "short", "laptop"]
BUDGETS: dict[Budget, str] = {"own": "", "short": "--recipe short", "laptop": "--recipe laptop"}
# Rows of settings that now take other flags, since the rungs' own have changed: their hash says that they are the same.
NOW_TYPED = {("--steps 500", "4c6675bf"): BUDGETS["short"]}
OTHER_THAN_OWN = "settings that are not their rung's own (ladder_table.py --variants lists them)"


def check_rungs(names: tuple[str, ...]) -> None:
    """Raises UserError for names that the ladder does not have."""
    unknown = [name for name in names if name not in RUNGS]
    if unknown:
        raise UserError(f"there is no rung {', '.join(unknown)}; the ladder has {', '.join(RUNGS)}")


@dataclass(frozen=True)
class Results:
    """rows: the log's rows that are comparable, `label` added: the rung, and its flags where they are not its own.

    order: the labels, in ladder order. corpus: the one they were all trained on. left_out: a line for each reason, and
    for each way in which what is there is not alike. log: where they are from.
    """

    rows: pd.DataFrame
    order: list[str]
    corpus: str
    left_out: list[str]
    log: Path

    def final(self) -> pd.DataFrame:
        """The last row of each run: (label, seed) is unique."""
        return self.rows[self.rows["step"] == self.rows["steps"]]

    def losses(self, label: str) -> pd.Series:
        """The final validation losses of `label`, by seed. Raises UserError where there are none."""
        if label not in self.order:
            near = [other for other in self.order if other.split()[0] == label.partition(" ")[0]] or self.order
            raise UserError(f"{self.log} has no finished runs of {label!r}; it has {', '.join(near)}")
        final = self.final()
        return final[final["label"] == label].set_index("seed")["val_loss"]

    def only(self, rungs: tuple[str, ...]) -> Results:
        """Those of these rungs alone, where any are named. Raises UserError for one that has no runs here."""
        check_rungs(rungs)
        missing = set(rungs) - set(self.rows["experiment"])
        if missing:
            raise UserError(f"there are no runs to show of {', '.join(sorted(missing))}; train them first")
        if not rungs:
            return self
        rows = self.rows[self.rows["experiment"].isin(rungs)]
        return replace(self, rows=rows, order=[label for label in self.order if label in set(rows["label"])])


def load_results(
    loss_csv: Path,
    corpus: str | None = None,
    variants: bool = False,
    commit: str | None = None,
    budget: Budget = "own",
) -> Results:
    """Select from the log.

    corpus: its name in the log; the default is Tiny Shakespeare, or where that has no rows, the latest one.
    variants: keep runs with flags of their own too, each set of flags under a label of its own.
    commit: keep runs of this one alone. budget: the flags to keep, if not all.
    Raises UserError for a log that is missing, damaged, or has nothing to show.
    """
    rows, left_out = read_log(loss_csv), []

    def keep(mask: pd.Series, reason: str) -> None:
        nonlocal rows
        dropped = rows[~mask]["run"].nunique()
        if dropped:
            left_out.append(f"left out {dropped} run{'s' * (dropped > 1)} {reason}")
        rows = rows[mask]

    if rows.empty:
        raise UserError(f"the loss log {loss_csv} has no rows yet; train a rung first")
    for (flags, config), now in NOW_TYPED.items():
        rows.loc[(rows["flags"] == flags) & (rows["config"] == config), "flags"] = now
    if corpus is None:
        corpus = TINY_SHAKESPEARE if TINY_SHAKESPEARE in set(rows["corpus"]) else rows["corpus"].iloc[-1]
    if corpus not in set(rows["corpus"]):
        names = ", ".join(sorted(set(rows["corpus"])))
        raise UserError(f"the loss log {loss_csv} has no run on the corpus {corpus}; it has {names}")
    keep(rows["corpus"] == corpus, f"on another corpus (--corpus shows them; here: {corpus})")
    keep(rows["corpus_sha256"] == rows["corpus_sha256"].iloc[-1], f"on another text of the name {corpus}")
    if commit is not None:
        keep(rows["commit"].str.startswith(commit), f"of other commits than {commit}")
    keep(rows["experiment"].isin(RUNGS), "of rungs that the ladder does not name (stages/__init__.py)")
    if not variants:
        settings = f"other settings than {BUDGETS[budget]}" if BUDGETS[budget] else OTHER_THAN_OWN
        keep(rows["flags"] == BUDGETS[budget], f"with {settings}")
    keep(rows.groupby("run")["step"].transform("max") == rows["steps"], "that did not finish")
    rows = rows.assign(label=(rows["experiment"] + " " + rows["flags"]).str.strip())
    latest = rows.groupby("label")["config"].transform("last")
    keep(rows["config"] == latest, "from before their rung's settings changed")
    latest = rows.groupby("label")["parameters"].transform("last")
    keep(rows["parameters"] == latest, "from before their rung's architecture changed")
    latest = rows.groupby("label")["precision"].transform("last")
    keep(rows["precision"] == latest, "in another precision than their rung's latest run")
    latest = rows.groupby(["label", "seed"])["run"].transform("last")
    keep(rows["run"] == latest, "that a later one with the same seed replaces")
    if rows.empty:
        raise UserError(f"nothing to show from {loss_csv}: {'; '.join(left_out)}")
    for column in ("precision", "device"):
        counts = rows.groupby(column)["run"].nunique()
        if len(counts) > 1:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
            left_out.append(f"these runs are not of one {column}, which may be part of what sets them apart: {kinds}")
    order = sorted(rows["label"].unique(), key=lambda label: (RUNGS.index(label.split()[0]), label))
    return Results(rows, order, corpus, left_out, loss_csv)
