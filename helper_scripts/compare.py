"""Say which of two sets of runs is better, if that can be said, and whether a run of one's own is normal.

Without names: each rung against the one before it, or the one that it names as AFTER, at the settings of --budget. With
two: the second against the first. A set is a rung; a rung and its flags, in quotes ("feed_forward --n-layer 3"); or
either with @COMMIT behind it, for a rung before and after a change.
Runs are compared seed by seed, for those seeds that both have: rungs of one batch and context size see the same batches
for the same seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from scipy import stats

from data import LOSS_CSV, UserError, read_log
from helper_scripts.models import as_logged, at_budget, rung_before
from helper_scripts.results import Budget, load_results
from training.cli import errors_in_one_line, parse

CONFIDENCE = 0.95
POWER = 0.8  # how likely the seeds that are asked for are to tell
MOST_SEEDS = 1000  # if more than that would be needed, nobody will


@dataclass(frozen=True)
class Options:
    sets: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # two sets of runs; none is the whole ladder
    loss_csv: Path = LOSS_CSV  # the log to read
    against: Path | None = None  # the log to take the second set from, if it is another
    mine: Path | None = None  # a log of one's own, to hold against --loss-csv: is it normal?
    budget: Budget = "own"  # the settings of all that is compared: the rungs' own, or those of run_ladder.py --budget
    corpus: str | None = None  # the corpus whose runs to compare; by default Tiny Shakespeare


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        if options.budget != "own" and (options.mine or options.against):
            raise UserError("--budget is for rungs of one log; leave it out, and name runs by their flags")
        if options.mine and (options.sets or options.against):
            raise UserError("--mine takes no other sets: it holds every run of that log against those like it")
        if options.mine:
            lines = normal(read_log(options.mine), read_log(options.loss_csv))
        elif not options.sets and not options.against:
            lines = whole_ladder(options)
        else:
            lines = two_sets(options)
        print("\n".join(lines))


def two_sets(options: Options) -> list[str]:
    """The verdict on the two sets that were named, and what of the log is in neither."""
    if len(options.sets) == 1 and options.against:
        names = options.sets * 2
    elif len(options.sets) == 2:
        parts = [name.partition("@") for name in options.sets]  # a label, and perhaps a commit
        names = tuple(at_budget(label, options.budget) + at + commit for label, at, commit in parts)
    else:
        raise UserError(f"two sets are compared, not {len(options.sets)}; name two, or one and --against LOG")
    logs = options.loss_csv, options.against or options.loss_csv
    if names[0] == names[1] and not options.against:
        raise UserError(f"{names[0]!r} twice: name two sets that differ, or another log with --against")
    (one, left_out), (other, left_out_there) = (
        final_losses(log, name, options.corpus) for log, name in zip(logs, names, strict=True)
    )
    if names[0] == names[1]:
        brief = logs[0].name != logs[1].name
        names = tuple(f"{name} of {log.name if brief else log}" for name, log in zip(names, logs, strict=True))
    return [verdict(*names, one, other), *dict.fromkeys([*left_out, *left_out_there])]


def whole_ladder(options: Options) -> list[str]:
    """A verdict on every rung that has runs, against the one before that has."""
    results = load_results(options.loss_csv, options.corpus, budget=options.budget)
    losses = {label: results.losses(label) for label in results.order}
    pairs = [(rung_before(label, results.order), label) for label in results.order]
    return [*(verdict(*pair, *(losses[rung] for rung in pair)) for pair in pairs if pair[0]), *results.left_out]


def final_losses(loss_csv: Path, name: str, corpus: str | None) -> tuple[pd.Series, list[str]]:
    """The final validation losses of the set called `name`, and a line for each reason to leave runs out.

    Raises UserError for a set that the log does not have.
    """
    label, at, commit = name.partition("@")
    results = load_results(loss_csv, corpus, variants=True, commit=commit if at else None)
    return results.losses(label if label in results.order else as_logged(label)), results.left_out


def verdict(name: str, other_name: str, one: pd.Series, other: pd.Series) -> str:
    """A sentence on whether `other` is better than `one`, two sets of losses by seed, from their paired differences."""
    n = len(one.index.intersection(other.index))
    alone = sorted(set(one.index) ^ set(other.index))
    left_out = f"; left out seeds that only one of them has: {', '.join(map(str, alone))}" if alone else ""
    if n < 2:
        seeds = f"{n} common seed" + "s" * (n != 1)
        return f"{other_name} against {name}: {seeds}, from which nothing can be said{left_out}"
    mean, low, high, n = paired(one, other)
    if mean == low == high == 0:
        return f"{other_name} and {name} have the same losses, seed by seed (n = {n} seeds){left_out}"
    figures = f"{mean:+.4f} (95%: {low:+.4f} to {high:+.4f}, n = {n} seeds)"
    if low <= 0 <= high:
        needed = seeds_that_would_tell(mean, (other - one).std())
        more = f"{needed} seeds would tell, four times in five" if needed else "no number of seeds would tell"
        return f"{other_name} and {name} cannot be told apart: {figures}; if it is that large, {more}{left_out}"
    return f"{other_name} is {'better' if mean < 0 else 'worse'} than {name}: {figures}{left_out}"


def paired(one: pd.Series, other: pd.Series) -> tuple[float, float, float, int]:
    """Mean of `other` - `one` over the seeds that both have, the ends of its 95% interval, and their number.

    The interval is Student's, for paired differences: not a number for less than two seeds.
    """
    seeds = one.index.intersection(other.index)
    differences = other[seeds] - one[seeds]
    mean = differences.mean()
    if len(seeds) < 2:
        return mean, math.nan, math.nan, len(seeds)
    if differences.round(6).nunique() == 1:  # no spread, in the digits that the log has: scipy makes nan of that
        return mean, mean, mean, len(seeds)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(CONFIDENCE)
    return mean, low, high, len(seeds)


def change(one: pd.Series, other: pd.Series) -> str:
    """What `other` is above `one`, with its interval, for a table: over the n seeds that both have."""
    mean, low, high, n = paired(one, other)
    if n == 0:
        return "no seed in common"
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f}, n = {n})" if n > 1 else f"{mean:+.3f} (n = 1)"


def seeds_that_would_tell(mean: float, deviation: float) -> int | None:
    """The smallest number of seeds whose interval would exclude zero with probability POWER.

    mean, deviation: of the differences, taken for the true ones. Student's statistic then follows his noncentral t.
    """
    for n in range(2, MOST_SEEDS + 1):
        limit = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
        if stats.nct.sf(limit, n - 1, abs(mean) / deviation * math.sqrt(n)) >= POWER:
            return n
    return None


def normal(mine: pd.DataFrame, theirs: pd.DataFrame) -> list[str]:
    """A line for each finished run of `mine`: where its loss lies among the others of its rung, text and settings."""
    theirs = theirs[theirs["step"] == theirs["steps"]]
    lines, unfinished = [], 0
    for _, rows in mine.groupby("run", sort=False):
        last = rows.iloc[-1]
        if last["step"] != last["steps"]:
            unfinished += 1
            continue
        name = f"{last['experiment']} {last['flags']}".strip() + f", seed {last['seed']}: {last['val_loss']:.4f}"
        alike = theirs[theirs["run"] != last["run"]]  # where both logs have the run
        for column in ("experiment", "config", "parameters", "corpus_sha256", "precision"):
            alike = alike[alike[column] == last[column]]
        own_seed = alike["seed"] == last["seed"]
        if (alike[own_seed]["val_loss"] == last["val_loss"]).any():
            lines.append(f"{name}; normal: the very loss that a run with this seed has in the log")
            continue
        alike = alike[~own_seed].drop_duplicates("seed", keep="last")  # a run that was repeated is one run
        lines.append(f"{name}; {_among(last['val_loss'], alike['val_loss'])}")
    if unfinished:
        lines.append(f"left out {unfinished} run{'s' * (unfinished > 1)} that did not finish")
    return lines or ["there is no run in it"]


def _among(loss: float, losses: pd.Series) -> str:
    """What to think of `loss`, given those of runs alike: it is normal where 95% of further ones would lie."""
    n = len(losses)
    if n < 2:
        return f"nothing to hold it against: {n} run{'s' * (n != 1)} of that rung, text and settings"
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * losses.std() * math.sqrt(1 + 1 / n)
    figures = (
        f"{losses.min():.4f} to {losses.max():.4f} in {n} runs, where {losses.mean():.4f} ± {reach:.4f} is expected"
    )
    if abs(loss - losses.mean()) <= reach:
        return f"normal: {figures}"
    return f"{'higher' if loss > losses.mean() else 'lower'} than it should be: {figures}"


if __name__ == "__main__":
    main()
