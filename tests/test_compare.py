"""Verdicts on runs: against scipy's own interval, a power computed by simulation, and sentences that a user reads."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import gpt
from data import LOSS_CSV, LossLog, read_log
from data.loss_log import COLUMNS
from helper_scripts import compare, controls, equal
from helper_scripts.compare import change, normal, seeds_that_would_tell, verdict
from helper_scripts.ladder_table import markdown_table
from helper_scripts.models import config_of, rung_before, rung_module, rungs_of, training_flops
from helper_scripts.results import BUDGETS, load_results


def losses(*values, first=0) -> pd.Series:
    return pd.Series(values, index=range(first, first + len(values)), dtype=float)


def row(**values) -> dict:
    base = {name: {str: "", int: 5, float: 1.0}[kind] for name, kind in COLUMNS.items()}
    base |= {"corpus": "tinyshakespeare", "corpus_sha256": "ab", "precision": "fp32", "config": "c"}
    return base | {"run": f"{values['experiment']}{values['seed']}{values.get('commit', '')}"} | values


@pytest.fixture
def logged(tmp_path):
    def write(name: str, rows: list[dict]):
        log = LossLog(tmp_path / name)
        for values in rows:
            log.append(values)
        return log.path

    return write


def test_the_interval_is_that_of_paired_differences():
    rng = np.random.default_rng(0)
    one, noise = rng.normal(2.0, 0.1, 6), rng.normal(-0.05, 0.01, 6)
    said = verdict("a", "b", losses(*one), losses(*(one + noise)))
    half = stats.t.ppf(0.975, 5) * noise.std(ddof=1) / np.sqrt(6)
    assert said.startswith("b is better than a: ")
    assert f"{noise.mean():+.4f} (95%: {noise.mean() - half:+.4f} to {noise.mean() + half:+.4f}, n = 6 seeds)" in said
    assert "b is worse than a" in verdict("a", "b", losses(*(one + noise)), losses(*one))


def test_pairs_tell_what_means_cannot():
    """Seeds that differ by far more than the two rungs do, but for both rungs alike."""
    one = losses(2.0, 2.2, 2.4, 2.6, 2.8)
    other = one - losses(0.010, 0.011, 0.009, 0.010, 0.010)
    assert stats.ttest_ind(one, other).pvalue > 0.9
    assert "is better" in verdict("a", "b", one, other)


def test_what_cannot_be_told_says_how_many_seeds_would():
    said = verdict("a", "b", losses(2.0, 2.0, 2.0, 2.0), losses(2.03, 1.98, 2.02, 1.98))
    assert "cannot be told apart" in said and "seeds would tell, four times in five" in said
    n = seeds_that_would_tell(-0.5, 1.0)
    rng = np.random.default_rng(0)
    draws = stats.ttest_1samp(rng.normal(-0.5, 1.0, (20_000, n)), 0, axis=1)
    assert (draws.confidence_interval(0.95).high < 0).mean() + 0.01 >= 0.8
    draws = stats.ttest_1samp(rng.normal(-0.5, 1.0, (20_000, n - 1)), 0, axis=1)
    assert (draws.confidence_interval(0.95).high < 0).mean() < 0.81
    assert seeds_that_would_tell(1e-9, 1.0) is None


def test_tables_of_few_seeds_have_no_intervals(recwarn):
    one = losses(2.0, 2.1)
    assert change(one, losses(2.5)) == "+0.500 (n = 1)"
    assert change(one, losses(2.5, first=7)) == "no seed in common"
    assert change(one, losses(2.5, 2.6)) == "+0.500 (+0.500 to +0.500, n = 2)"
    assert not recwarn.list


def test_seeds_that_one_lacks_are_named_and_few_are_too_few():
    said = verdict("a", "b", losses(2.0, 2.1, 2.2), losses(1.9, 2.01, 2.5, first=1))
    assert "n = 2 seeds" in said and "only one of them has: 0, 3" in said
    assert "from which nothing can be said" in verdict("a", "b", losses(2.0), losses(1.0))
    assert "0 common seeds" in verdict("a", "b", losses(2.0), losses(1.0, first=5))


def run(monkeypatch, capsys, *args) -> str:
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, args)])
    compare.main()
    return capsys.readouterr().out


def test_the_ladder_rung_by_rung(logged, monkeypatch, capsys):
    rows = [
        row(experiment=rung, seed=seed, val_loss=loss + 0.001 * seed**2 * (k - 1))
        for k, (rung, loss) in enumerate((("bigram", 2.5), ("multi_head", 2.2), ("residual", 2.2)))
        for seed in range(3)
    ]
    rows.append(row(experiment="gpt", seed=0, val_loss=1.0, step=1))  # did not finish
    said = run(monkeypatch, capsys, "--loss-csv", logged("log.csv", rows)).splitlines()
    assert said[0].startswith("multi_head is better than bigram: ")
    assert said[1].startswith("residual and multi_head cannot be told apart: ")
    assert said[2:] == ["left out 1 run that did not finish"]


def test_a_budget_is_a_ladder_of_its_own(logged, monkeypatch, capsys):
    def runs(rung: str, flags: str, loss: float) -> list[dict]:
        settings = {"experiment": rung, "flags": flags, "config": flags, "commit": flags}
        return [row(**settings, seed=seed, val_loss=loss + 0.01 * seed**2) for seed in range(3)]

    laptop = BUDGETS["laptop"]
    rows = [*runs("gpt", "", 1.5), *runs("gpt", laptop, 2.0), *runs("pre_norm", "", 2.1), *runs("rotary", laptop, 1.75)]
    log = logged("log.csv", rows)
    said = run(monkeypatch, capsys, "--budget", "laptop", "--loss-csv", log).splitlines()
    assert said == [
        f"rotary {laptop} is better than gpt {laptop}: -0.2500 (95%: -0.2500 to -0.2500, n = 3 seeds)",
        f"left out 6 runs with other settings than {laptop}",
    ]
    assert run(monkeypatch, capsys, "gpt", "rotary", "--budget", "laptop", "--loss-csv", log).startswith(said[0])
    rows += runs("rotary", f"{laptop} --n-layer 2", 1.9)  # flags of its own come behind the budget's, as in the log
    said = run(
        monkeypatch, capsys, "gpt", "rotary --n-layer 2", "--budget", "laptop", "--loss-csv", logged("more.csv", rows)
    )
    assert said.startswith(f"rotary {laptop} --n-layer 2 is better than gpt {laptop}: -0.1000")
    *_, gpts, rotarys = markdown_table(load_results(log, budget="laptop")).splitlines()
    assert gpts.startswith(f"| `gpt {laptop}` |") and rotarys.startswith(f"| `rotary {laptop}` |")
    assert [line.split(" | ")[3] for line in (gpts, rotarys)] == ["", "-0.250 (-0.250 to -0.250, n = 3)"]
    assert "rotary" not in markdown_table(load_results(log))


def test_what_a_rung_is_held_against(monkeypatch):
    steps = ["bigram --steps 2", "residual --steps 2"]
    assert [rung_before(label, steps) for label in steps] == [None, "bigram --steps 2"]
    order = ["bigram", "residual", "residual --n-layer 1", "pre_norm", "gpt", "gpt --steps 9"]
    assert [rung_before(label, order) for label in order] == [None, "bigram", "residual", "residual", "pre_norm", "gpt"]
    monkeypatch.setattr(gpt, "AFTER", "stages.residual", raising=False)
    assert rung_before("gpt", order) == "residual"
    assert rung_before("gpt", ["bigram", "gpt"]) == "bigram"
    assert rung_before("gpt --steps 9", ["bigram", "gpt --steps 9"]) is None


# Sizes, and the ladder at equal ones


@pytest.mark.parametrize(("rung", "vocab"), [("bigram", 65), ("pre_norm", 65), ("pre_norm", 7), ("self_attention", 65)])
def test_flops_by_hand(rung, vocab):
    """Two for each weight of a product, and as many for each pair of positions; twice that again for the gradients."""
    C, T, layers = 32, 8, 3
    attention = 2 * (3 * C * C) + 2 * 2 * T * C
    by_hand = {
        "bigram": 0,  # it looks up, and multiplies nothing
        "self_attention": 3 * (attention + 2 * C * vocab),
        "pre_norm": 3 * (layers * (attention + 2 * C * C + 2 * 8 * C * C) + 2 * C * vocab),
    }
    model = rung_module(rung).LanguageModel(vocab, config_of(rung))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert training_flops(rung, parameters) == by_hand[rung]
    assert training_flops(rung, parameters + 1) is None
    assert training_flops(f"{rung} --no-such-flag 1", parameters) is None


def test_equal_settings_are_equal():
    """The widths by the models themselves, the times by the committed log."""

    def parameters(label):
        model = rung_module(label.split()[0]).LanguageModel(65, config_of(label))
        return sum(parameter.numel() for parameter in model.parameters())

    goal = parameters("pre_norm")
    assert all(abs(parameters(label) / goal - 1) < 0.06 for label in equal.PARAMETERS)
    rows = read_log(LOSS_CSV)
    rows = rows[(rows["step"] == rows["steps"]) & (rows["flags"] == "") & (rows["steps"] == 5000)]
    a_step = rows.groupby("experiment")["seconds"].mean() / 5000
    steps = {label.split()[0]: config_of(label).steps for label in equal.TIME}
    assert tuple(steps) == rungs_of("own")[:7]  # a rung of one's own would come after them
    assert all(abs(a_step[rung] * steps[rung] / (5000 * a_step["pre_norm"]) - 1) < 0.15 for rung in steps)


def test_a_reading_by_hand(logged, monkeypatch, capsys):
    def runs(label: str, loss: float, power: int = 1) -> list[dict]:
        rung, _, flags = label.partition(" ")
        settings = {"experiment": rung, "flags": flags, "commit": flags, "config": label}
        return [row(**settings, seed=seed, val_loss=loss + 0.01 * seed**power) for seed in range(3)]

    rows = [
        values
        for labels in (equal.PARAMETERS[:3], equal.TIME)
        for k, label in enumerate(labels)
        for values in runs(label, 3 - k)
    ]
    rows += runs("residual", 0.5, power=2)
    for rung in ("bigram", "self_attention", "multi_head", "feed_forward"):
        rows += [values | {"seconds": 3.0, "step": 100, "steps": 100} for values in runs(rung, 9)]
    for values in rows:
        if values["config"] == "bigram --steps 45000":
            values |= {"step": 200, "steps": 200}
    monkeypatch.setattr(sys, "argv", ["equal.py", "--loss-csv", str(logged("log.csv", rows))])
    equal.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("| at equal parameters | parameters |")
    assert said[2] == "| `self_attention --n-embd 98` | 5 | **3.010** ± 0.010 (n = 3) |  |"
    assert "| -1.000 (-1.000 to -1.000, n = 3) |" in said[3]
    low, high = stats.t.interval(0.95, 2, np.mean([0, 0, 0.02]) - 0.5, stats.sem([0, 0, 0.02]))
    assert f"| -0.493 ({low:+.3f} to {high:+.3f}, n = 3) |" in said[5]
    assert said[9].startswith("| at equal time | seconds |") and "pre_norm" in said[17]
    assert said[11].startswith("| `bigram --steps 45000` | 6 |")  # 3 s for 100 steps, so for 200


def test_a_rung_before_and_after_a_change(logged, monkeypatch, capsys):
    rows = [
        row(experiment="residual", seed=seed, commit=commit, val_loss=loss + 0.01 * seed)
        for commit, loss in (("aaaa", 2.1), ("bbbb", 2.0))
        for seed in range(4)
    ]
    rows[0]["val_loss"] += 0.001
    path = logged("log.csv", rows)
    said = run(monkeypatch, capsys, "residual@aaaa", "residual@bbbb", "--loss-csv", path)
    assert said.startswith("residual@bbbb is better than residual@aaaa: -0.1003")
    other = logged("other.csv", rows[:4])
    said = run(monkeypatch, capsys, "residual", "--loss-csv", path, "--against", other)
    assert "residual of other.csv is worse than residual of log.csv" in said
    assert "left out 4 runs that a later one with the same seed replaces" in said
    said = run(monkeypatch, capsys, "residual", "--loss-csv", other, "--against", other)
    assert said.startswith(f"residual of {other} and residual of {other} have the same losses, seed by seed (n = 4")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["residual"], "two sets are compared"),
        (["residual", "nope"], "no finished runs of 'nope'; it has residual"),
        (["residual", ""], "no finished runs of ''; it has residual"),
        (["residual", "residual", "residual"], "two sets are compared"),
        (["residual", "residual"], "'residual' twice: name two sets that differ"),
        (["residual", "--mine", "x"], "--mine takes no other sets"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(args, words, logged, monkeypatch, capsys):
    path = logged("log.csv", [row(experiment="residual", seed=0, val_loss=2.0)])
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, capsys, *args, "--loss-csv", path)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_flags_in_any_order_are_the_same_set(logged, monkeypatch, capsys):
    own = [row(experiment="residual", seed=s, val_loss=2.0 + 0.01 * s) for s in range(3)]
    other = [
        values | {"flags": "--steps 9 --learning-rate 0.003", "config": "d", "run": f"other{values['seed']}"}
        for values in own
    ]
    gone = [values | {"flags": "--gone 1", "config": "e", "run": f"gone{values['seed']}"} for values in own]
    log = logged("log.csv", own + other + gone)
    for name in ("residual --learning-rate 3e-3 --steps 9", "residual --steps 9 --learning-rate=.003 --n-layer 3"):
        said = run(monkeypatch, capsys, "residual", name, "--loss-csv", log)
        assert said.startswith(f"{name} and residual have the same losses")
    said = run(monkeypatch, capsys, "residual", "residual --gone 1", "--loss-csv", log)
    assert "have the same losses" in said


def test_is_my_run_normal(logged, tmp_path, monkeypatch, capsys):
    theirs = [row(experiment="residual", seed=s, val_loss=2.0 + 0.01 * s) for s in range(5)]
    mine = [
        row(experiment="residual", seed=9, val_loss=2.03),
        row(experiment="residual", seed=10, val_loss=2.30),
        row(experiment="residual", seed=11, val_loss=1.50),
        row(experiment="residual", seed=12, val_loss=2.03, corpus_sha256="other"),
        row(experiment="residual", seed=13, val_loss=2.03, config="other", flags="--steps 9"),
        row(experiment="residual", seed=14, val_loss=2.03, step=4),
        row(experiment="residual", seed=15, val_loss=2.03, parameters=7),
    ]
    again = [values | {"run": f"{values['run']}again", "val_loss": values["val_loss"] + 1e-5} for values in theirs]
    theirs = again + theirs  # which makes them no more than five
    mine.append(row(experiment="residual", seed=4, val_loss=2.04, run="mine"))
    reach = stats.t.ppf(0.975, 4) * np.std([0, 0.01, 0.02, 0.03, 0.04], ddof=1) * np.sqrt(1.2)
    said = run(monkeypatch, capsys, "--mine", logged("mine.csv", mine), "--loss-csv", logged("theirs.csv", theirs))
    lines = said.splitlines()
    itself = run(monkeypatch, capsys, "--mine", tmp_path / "theirs.csv", "--loss-csv", tmp_path / "theirs.csv")
    assert itself.count("normal: ") == 10 and itself.count("in 4 runs") == 10  # each against the other seeds
    assert "residual, seed 9: 2.0300; normal: 2.0000 to 2.0400 in 5 runs" in lines[0]
    assert f"2.0200 ± {reach:.4f}" in lines[0]
    assert "higher than it should be" in lines[1] and "lower than it should be" in lines[2]
    assert "nothing to hold it against: 0 runs" in lines[3] and "nothing to hold it against" in lines[4]
    assert lines[4].startswith("residual --steps 9, seed 13")
    assert "nothing to hold it against: 0 runs" in lines[5]
    assert lines[6] == "residual, seed 4: 2.0400; normal: the very loss that a run with this seed has in the log"
    assert lines[7] == "left out 1 run that did not finish"


def test_one_in_twenty_normal_runs_is_not_called_normal():
    rng = np.random.default_rng(1)
    named = 0
    for _ in range(400):
        theirs = pd.DataFrame([row(experiment="a", seed=s, val_loss=rng.normal(2, 0.01)) for s in range(5)])
        mine = pd.DataFrame([row(experiment="a", seed=9, val_loss=rng.normal(2, 0.01))])
        named += "normal:" not in normal(mine, theirs)[0]
    assert 0.02 < named / 400 < 0.09


def test_the_controls_by_hand(logged, monkeypatch, capsys):
    """Depth alone costs 0.1, skips alone gain 0.1, and both together 0.3."""
    corners = {"": 2.2, "--n-layer 3": 2.3}, {"--n-layer 1": 2.1, "": 1.9}
    rows = [
        row(experiment=rung, flags=flags, seed=seed, config=flags, val_loss=loss + 0.01 * seed, commit=flags)
        for rung, losses_ in zip(("feed_forward", "residual"), corners, strict=True)
        for flags, loss in losses_.items()
        for seed in range(3)
    ]
    for k in (0, 9):  # 2.203 in place of 2.2 and 1.903 in place of 1.9, so that differences differ
        rows[k]["val_loss"] += 0.003
    monkeypatch.setattr(sys, "argv", ["controls.py", "--loss-csv", str(logged("log.csv", rows))])
    controls.main()
    said = capsys.readouterr().out.splitlines()
    half = stats.t.ppf(0.975, 2) * np.std([0.097, 0.1, 0.1], ddof=1) / np.sqrt(3)
    assert said[2].startswith("| no skips | **2.211** ± 0.009 (n = 3) | **2.310** ± 0.010 (n = 3) | +0.099 (")
    assert f"({0.099 - half:+.3f} to {0.099 + half:+.3f}, n = 3)" in said[2]
    assert said[3].startswith("| skips | **2.110** ± 0.010 (n = 3) | **1.911** ± 0.009 (n = 3) | -0.199 (")
    assert said[4].startswith("| what skips change | -0.101 (")
