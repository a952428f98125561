"""compare.py: intervals against scipy's, the power against a simulation, and the sentences that it prints."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import runs
from scipy import stats

from helper_scripts import compare
from helper_scripts.compare import change, seeds_for, smallest_shown, verdict


def losses(*values, first=0) -> pd.Series:
    return pd.Series(values, index=range(first, first + len(values)), dtype=float)


def test_the_interval_is_of_paired_differences():
    """The seeds differ by much more than the two rungs, so a comparison of means would show nothing."""
    rng = np.random.default_rng(0)
    one, noise = rng.normal(2.0, 0.5, 6), rng.normal(-0.05, 0.01, 6)
    printed = verdict("a", "b", losses(*one), losses(*(one + noise)))
    half = stats.t.ppf(0.975, 5) * noise.std(ddof=1) / np.sqrt(6)
    assert printed.startswith("b is better than a: ")
    assert (
        f"{noise.mean():+.4f} (95%: {noise.mean() - half:+.4f} to {noise.mean() + half:+.4f}, n = 6 seeds)" in printed
    )
    assert "b is worse than a" in verdict("a", "b", losses(*(one + noise)), losses(*one))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_smallest_difference_that_shows_has_a_power_of_80_percent(n):
    deviation = 0.03
    shown = smallest_shown(n, deviation)
    draws = np.random.default_rng(0).normal(shown, deviation, (40_000, n))
    found = stats.ttest_1samp(draws, 0, axis=1).confidence_interval(0.95).low > 0
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert seeds_for(shown * 1.001, deviation) == n and seeds_for(shown * 0.999, deviation) == n + 1
    assert seeds_for(1e-9, deviation) is None


def test_rungs_that_cannot_be_told_apart_come_with_the_difference_that_would_show():
    one, other = losses(2.0, 2.0, 2.0, 2.0), losses(2.03, 1.98, 2.02, 1.98)
    shown, seeds = smallest_shown(4, (other - one).std()), seeds_for(0.01, (other - one).std())
    printed = verdict("a", "b", one, other)
    assert printed.startswith("b and a cannot be told apart: +0.0025 (95%: ")
    assert f"; with 4 seeds, a difference of {shown:.4f} is found with a probability of 80%; " in printed
    assert printed.endswith(f"to find one of 0.01 takes {seeds} seeds")


def test_few_seeds_and_missing_seeds_are_reported(recwarn):
    printed = verdict("a", "b", losses(2.0, 2.1, 2.2), losses(1.9, 2.01, 2.5, first=1))
    assert "n = 2 seeds" in printed and "only one of them has: 0, 3" in printed
    assert "from which nothing can be said" in verdict("a", "b", losses(2.0), losses(1.0))
    assert "0 common seeds" in verdict("a", "b", losses(2.0), losses(1.0, first=5))
    one = losses(2.0, 2.1)
    assert change(one, losses(2.5)) == "+0.500 (n = 1)"
    assert change(one, losses(2.5, first=7)) == "no seed in common"
    assert change(one, losses(2.5, 2.6)) == "+0.500 (+0.500 to +0.500, n = 2)"
    assert not recwarn.list


def test_the_ladder_is_compared_rung_by_rung(log, command):
    path = log(
        runs("bigram", 2.50, 2.51, 2.52),
        runs("multi_head", 2.20, 2.22, 2.23),
        runs("residual", 2.20, 2.21, 2.24),
        runs("pre_norm", 2.10, 2.11, 2.13, shared_code="older"),
        runs("gpt", 1.0)[:-1],
    )
    printed = command(compare, "--loss-csv", path).splitlines()
    assert printed[0].startswith("multi_head is better than bigram: -0.2933 ")
    assert printed[1].startswith("residual and multi_head cannot be told apart: ")
    ends = stats.ttest_1samp([-0.30, -0.29, -0.29], 0).confidence_interval(0.975)
    assert ends.high < 0
    assert printed[2] == (
        "2 comparisons: even if no rungs differ, the probability that at least one interval excludes zero is "
        "about 10%; with intervals of 97.5% (Bonferroni) it is at most 5%; 1 of these 2 exclude zero"
    )
    assert printed[3:] == [
        "left out 1 run that did not finish",
        "runs of earlier code, because there are none of the present code: pre_norm",
        "not compared, because their shared code differs: pre_norm with residual",
    ]
    printed = command(compare, "--loss-csv", log(runs("residual", 2.0)))
    assert printed == "nothing to compare: there are runs of residual alone\n"


def test_named_rungs_are_compared_with_the_first_and_others_are_left_out(log, command):
    path = log(
        runs("gpt --preset laptop", 2.00, 2.01, 2.04),
        runs("rotary --preset laptop", 1.75, 1.76, 1.79),
        runs("rotary --preset laptop --n-layer 2", 1.90, 1.91, 1.94),
        runs("gpt", 1.5, precision="bf16"),
        runs("muon", 1.5)[:-1],
    )
    for other, gain in (("rotary", "-0.2500"), ("rotary --n-layer 2", "-0.1000")):
        printed = command(compare, "gpt", other, "--preset", "laptop", "--loss-csv", path)
        assert printed == f"{other} is better than gpt: {gain} (95%: {gain} to {gain}, n = 3 seeds)\n"
    both = command(compare, "gpt", "rotary --n-layer 2", "rotary", "--preset", "laptop", "--loss-csv", path)
    assert [line.split(":")[0] for line in both.splitlines()] == [
        "rotary --n-layer 2 is better than gpt", "rotary is better than gpt"
    ]  # fmt: skip


def test_a_precision_in_the_quotes_selects_runs_of_that_precision(log, command):
    path = log(runs("residual", 2.0, 2.1, 2.2), runs("residual", 1.0, 1.2, precision="bf16"))
    printed = command(compare, "residual", "residual --precision bf16", "--loss-csv", path)
    assert "is better than residual: -0.9500" in printed and "n = 2 seeds" in printed  # (1.0 - 2.0 + 1.2 - 2.1) / 2


@pytest.mark.parametrize("column", ["rung_code", "shared_code", "torch"])
def test_a_rung_is_compared_before_and_after_a_change(column, log, command):
    path = log(
        runs("residual", 2.10, 2.11, 2.12, 2.14, commit="aaaa1111", **{column: "older"}),
        runs("residual", 2.0, 2.01, 2.02, 2.03, commit="bbbb1111+"),
    )
    printed = command(compare, "residual@aaaa", "residual@bbbb", "--loss-csv", path)
    assert printed.startswith("residual@bbbb is better than residual@aaaa: -0.1025")
    assert (f"their {column.replace('_', ' ')} differs: older and " in printed) == (column != "torch")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["residual"], "name two or more different rungs"),
        (["residual", "nope"], "there is no rung nope; the ladder has bigram"),
        (["residual", "post_norm"], "no finished runs of 'post_norm'; it has residual"),
        (["residual", "residual"], "not 'residual' and 'residual'"),
        (["residual", "residual@"], "residual@ names no commit; write residual@COMMIT"),
        (["residual", "pre_norm"], "not compared: their shared code differs: "),
        (["residual", "bigram --holdout"], "one ran with --holdout"),
        (["residual", "gpt", "--preset", "laptop"], "nothing to show"),
    ],
)
def test_an_impossible_comparison_is_a_one_line_error(args, words, log, command):
    path = log(runs("residual", 2.0), runs("pre_norm", 2.0, shared_code="older"), runs("bigram --holdout", 2.0))
    assert words in command(compare, *args, "--loss-csv", path, fails=True)
