"""Compare rungs, and say which is better if the runs show it.

Without names: each rung against the one before it, or against the rung that its file names as AFTER. With names: each
of the others against the first. A name is a rung, or a rung and its flags in quotes ("feed_forward --n-layer 3");
@COMMIT after it selects runs of that commit, to compare a rung before and after a change. Runs are compared seed by
seed, for the seeds that both have: with the same batch and context size, the same seed gives the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import tyro
from scipy import optimize, stats

from data import UserError
from helper_scripts.results import CODE, Results, Selection, is_held_out, load_results
from training.cli import errors_in_one_line, parse

CONFIDENCE = 0.95
POWER = 0.8  # the probability of showing a difference that exists
DIFFERENCE = 0.01  # in nats per character: about what one part of a large rung gains
MOST_SEEDS = 1000  # a larger number is not printed


@dataclass(frozen=True)
class Options(Selection):
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # each against the first; by default the whole ladder


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        lines = against_the_first(options) if options.names else whole_ladder(load_results(options))
        print("\n".join(lines))


def against_the_first(options: Options) -> list[str]:
    """The verdicts on the named rungs, and the runs that were left out."""
    first, *others = names = options.names
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"name two or more different rungs, not {' and '.join(map(repr, names))}")
    results = load_results(options, labels=names)
    lines = []
    for other in others:
        lines += [verdict(first, other, results.losses(first), results.losses(other)), *_apart(results, first, other)]
    return [*lines, *results.left_out]


def _apart(results: Results, name: str, other_name: str) -> list[str]:
    """How the code of two labels differs. Raises UserError if they are not comparable, by code or split."""
    one, other = (results.runs(each).iloc[0] for each in (name, other_name))
    if is_held_out(one) != is_held_out(other):
        raise UserError("not compared: one ran with --holdout, the other without; name runs with the same split")
    of_commits, lines = "@" in name + other_name, []
    for column in CODE if of_commits else CODE[1:]:
        if one[column] != other[column] and (column == "shared_code" or one["rung"] == other["rung"]):
            lines.append(f"their {column.replace('_', ' ')} differs: {one[column]} and {other[column]}")
    if lines and not of_commits:
        raise UserError(f"not compared: {lines[0]}; train both again, or name a commit, as in {name}@COMMIT")
    return lines


def whole_ladder(results: Results) -> list[str]:
    """A verdict on every rung that has runs, and a line on the chance of errors among all of them."""
    pairs = [(before, label) for label in results.order if (before := results.before(label))]
    losses = {label: results.losses(label) for label in results.order}
    lines = [verdict(*pair, *(losses[label] for label in pair)) for pair in pairs]
    differences = [paired(losses[one], losses[other]) for one, other in pairs]
    if (k := sum(len(each) > 1 for each in differences)) > 1:
        each = 1 - (1 - CONFIDENCE) / k
        ends = [interval(those, each) for those in differences if len(those) > 1]
        left = sum(not low <= 0 <= high for low, high in ends)
        lines.append(
            f"{k} comparisons: even if no rungs differ, the probability that at least one interval excludes zero is "
            f"about {1 - CONFIDENCE**k:.0%}; with intervals of {each:.1%} (Bonferroni) it is at most 5%; {left} of "
            f"these {k} exclude zero"
        )
    return [*(lines or [f"nothing to compare: there are runs of {', '.join(results.order)} alone"]), *results.left_out]


def verdict(name: str, other_name: str, one: pd.Series, other: pd.Series) -> str:
    """A sentence on whether `other` is better than `one`, two sets of losses by seed, from their paired differences."""
    differences = paired(one, other)
    n, mean = len(differences), differences.mean()
    alone = sorted(set(one.index) ^ set(other.index))
    left_out = f"; left out seeds that only one of them has: {', '.join(map(str, alone))}" if alone else ""
    if n < 2:
        seeds = f"{n} common seed" + "s" * (n != 1)
        return f"{other_name} against {name}: {seeds}, from which nothing can be said{left_out}"
    low, high = interval(differences)
    if low == high == 0:
        return f"{other_name} and {name} have the same losses, seed by seed (n = {n} seeds){left_out}"
    figures = f"{mean:+.4f} (95%: {low:+.4f} to {high:+.4f}, n = {n} seeds)"
    if low <= 0 <= high:
        shown, needed = smallest_shown(n, differences.std()), seeds_for(DIFFERENCE, differences.std())
        return (
            f"{other_name} and {name} cannot be told apart: {figures}; with {n} seeds, a difference of {shown:.4f} is "
            f"found with a probability of 80%; to find one of {DIFFERENCE} takes "
            f"{needed or f'more than {MOST_SEEDS}'} seeds{left_out}"
        )
    return f"{other_name} is {'better' if mean < 0 else 'worse'} than {name}: {figures}{left_out}"


def paired(one: pd.Series, other: pd.Series) -> pd.Series:
    """`other` - `one` for the seeds that both have, rounded as in the log."""
    return (other - one).dropna().round(6)


def interval(differences: pd.Series, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean of two differences or more."""
    if differences.nunique() == 1:  # no spread: scipy makes nan of that
        return differences.iloc[0], differences.iloc[0]
    return tuple(stats.ttest_1samp(differences, 0).confidence_interval(confidence))


def change(one: pd.Series, other: pd.Series) -> str:
    """By how much `other` is above `one`, with the interval, for a table: over the n seeds that both have."""
    differences = paired(one, other)
    n, mean = len(differences), differences.mean()
    if n == 0:
        return "no seed in common"
    return f"{mean:+.3f} ({'{:+.3f} to {:+.3f}, '.format(*interval(differences)) if n > 1 else ''}n = {n})"


def smallest_shown(n: int, deviation: float) -> float:
    """The difference whose interval, from n seeds, excludes zero with probability POWER."""
    return optimize.brentq(lambda t: _power(t, n) - POWER, 0, 100) * deviation / math.sqrt(n)


def seeds_for(difference: float, deviation: float) -> int | None:
    """The smallest number of seeds whose interval excludes zero with probability POWER; None above MOST_SEEDS.

    deviation: of the differences, taken for the true one.
    """
    numbers = range(2, MOST_SEEDS + 1)
    return next((n for n in numbers if _power(difference / deviation * math.sqrt(n), n) >= POWER), None)


def _power(t: float, n: int) -> float:
    """The probability that n seeds show a mean t standard errors from zero (a noncentral t distribution)."""
    return stats.nct.sf(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1), n - 1, t)


if __name__ == "__main__":
    main()
