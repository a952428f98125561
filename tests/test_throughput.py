"""Planning a run: its speed, the steps and the dropout for given minutes, the message about its length."""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import rung_id

import gpt
from data import Corpus, UserError, read_log
from stages import modern
from training import TrainConfig, console, run
from training.cli import parse
from training.config import config_hash, settings
from training.evaluate import summed_loss
from training.loop import train
from training.minutes import (
    choose_steps,
    has_time_to_evaluate,
    is_large_enough,
    rough_plan,
    sizes,
    timed_steps,
    with_dropout_for_its_epochs,
)
from training.schedule import learning_rate
from training.state import State
from training.throughput import Throughput, measure_throughput


def flags(folder, text_file) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
    return [*places, "--sample-length", "1", "--device", "cpu"]


def test_a_plan_for_ten_minutes_matches_one_by_hand(corpus):
    throughput = Throughput(step=1.0, evaluation=20.0, sample=10.0)
    plan = rough_plan(TrainConfig(eval_interval=250, warmup_steps=50, schedule="linear"), throughput, 600, corpus)
    assert (plan.steps, plan.warmup_steps, plan.eval_interval) == (550, 27, 250)  # a 20th of the steps to warm up
    # the beginning has taken 28 s and its evaluation 20. Of the other 552 s a twentieth, 27.6 s, is for evaluations
    # before the last; the last takes 20 s and the sample 10, which leaves 494 s
    settled = choose_steps(plan, throughput, 552, timed_steps(plan))
    assert (timed_steps(plan), settled.steps) == (28, 28 + 494)
    # after half of these steps, on time, 27 s will not be needed, half of them until now: more than half an evaluation
    half = SimpleNamespace(step=261, seconds=261.0)
    assert has_time_to_evaluate(settled, half, throughput, 261 + 20 + 10 + 27)
    assert not has_time_to_evaluate(settled, half, throughput, 261 + 20 + 10 + 19)
    half.seconds *= 1.1  # at this speed the other half takes 26 s longer
    assert not has_time_to_evaluate(settled, half, throughput, 261 + 20 + 10 + 27)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("warmup_steps", [0, 7, 200])
def test_the_beginning_is_that_of_the_settled_run(schedule, warmup_steps, corpus):
    """Steps may be faster or slower than planned, or so slow that no time is left."""
    config = gpt.Config(schedule=schedule, warmup_steps=warmup_steps, eval_interval=10)
    plan = rough_plan(config, Throughput(1.0, 1.0, 1.0), 600, corpus)
    done = timed_steps(plan)
    assert done >= (29 if schedule == "constant" else 1 + min(warmup_steps, 29))
    for speed in (0.5, 1.0, 1.6, 10.0, 1000.0):
        settled = choose_steps(plan, Throughput(speed, 1.0, 1.0), 600 - done * speed, done)
        assert settled.steps > done
        again = replace(config, steps=settled.steps, warmup_steps=settled.warmup_steps)
        rates = [learning_rate(step, settled) for step in range(100)]
        assert rates[:done] == [learning_rate(step, plan) for step in range(done)]
        assert rates == [learning_rate(step, again) for step in range(100)]


def test_too_little_time_is_an_error(corpus):
    with pytest.raises(UserError, match=r"--minutes 0\.5 leaves no time.* 49 s here"):  # 3 s have passed before
        rough_plan(TrainConfig(minutes=0.5), Throughput(step=1, evaluation=20, sample=5), 27, corpus)


@pytest.mark.parametrize("rung", [gpt, modern], ids=rung_id)
def test_measuring_does_not_change_training(rung, corpus, small):
    config = small(rung, steps=3, dropout=0.3)

    def trained(measured: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = rung.LanguageModel(corpus.tokenizer.vocab_size, config)
        if measured:
            measure_throughput(model, corpus, config, "fp32")
        drawn = torch.rand(3)
        list(train(State.at_start(model, config), corpus, config, "fp32", range(3)))
        return [drawn, *model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


@pytest.fixture
def clock(monkeypatch):
    """A clock, on which a step takes 10 s and a split's evaluation 30. The trial before a run measures 20 and 100.

    clock.later: seconds of a step after the timed ones.
    """
    clock, batch = SimpleNamespace(seconds=0.0, later=10.0), Corpus.batch

    def slow_batch(corpus, seed, step, *sizes):
        clock.seconds += 10.0 if step < 15 else clock.later
        return batch(corpus, seed, step, *sizes)

    def slow_loss(*args):
        clock.seconds += 30.0
        return summed_loss(*args)

    monkeypatch.setattr(time, "perf_counter", lambda: clock.seconds)
    monkeypatch.setattr(Corpus, "batch", slow_batch)
    monkeypatch.setattr(sys.modules["training.loop"], "summed_loss", slow_loss)
    monkeypatch.setattr(sys.modules["training.run"], "measure_throughput", lambda *_, **__: Throughput(20, 100, 0))
    return clock


SIZES = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "16"]
SAME = ["step", "steps", "train_loss", "val_loss", "tokens", "flags", "config"]


def in_another_process(command: str, folder) -> pd.DataFrame:
    """Runs a printed command; returns its rows of the log in `folder`. Rows of this process are moved away first."""
    (folder / "log.csv").rename(folder / "first.csv")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, env=os.environ | threads, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return read_log(folder / "log.csv")


@pytest.mark.parametrize(("later", "evaluations"), [(9.2, 12), (10.0, 5), (10.8, 0)])
def test_a_run_evaluates_as_often_as_it_has_time(later, evaluations, tmp_path, text_file, clock, capsys):
    """So that it takes its minutes although steps later take another time than the timed ones.

    A twentieth of the 5,790 s after the timed start is for evaluations of 60 s; 544 steps may take more or less of it.
    """
    clock.later = later
    run(gpt.LanguageModel, gpt.Config, [*flags(tmp_path, text_file), *SIZES, "--minutes", "100"])
    assert abs(clock.seconds - 6000) < 0.03 * 6000 and "the machine was" not in capsys.readouterr().out
    rows = read_log(tmp_path / "log.csv")
    assert len(rows) == 1 + evaluations + 1 and rows["step"].is_monotonic_increasing


def test_a_run_that_became_much_slower_says_so_and_names_the_steps_for_its_minutes(tmp_path, text_file, clock, capsys):
    clock.later = 20.0
    run(gpt.LanguageModel, gpt.Config, [*flags(tmp_path, text_file), *SIZES, "--minutes", "100"])
    steps, per_step = (read_log(tmp_path / "log.csv").iloc[-1][name] for name in ("steps", "seconds"))
    printed = capsys.readouterr().out
    assert "the machine was slower than while its first steps were timed" in printed
    suggested = int(re.search(r"--steps (\d+) takes that time", printed)[1])
    assert clock.seconds - (steps - suggested) * per_step / steps == pytest.approx(6000, abs=per_step / steps)


def test_a_run_takes_its_minutes_and_the_printed_command_repeats_it_exactly(tmp_path, text_file, clock, capsys):
    run(gpt.LanguageModel, gpt.Config, [*flags(tmp_path, text_file), *SIZES, "--minutes", "100"])
    printed = capsys.readouterr().out
    assert 0.99 * 6000 < clock.seconds < 1.01 * 6000  # although the steps were twice as fast as in the trial
    assert "the machine was" not in printed
    command = re.search("to repeat this run: (.*)", printed)[1]
    config = parse(gpt.Config, "", shlex.split(command)[2:])
    assert (config.minutes, config.warmup_steps) == (0.0, 14)  # 290 steps were planned
    assert f"characters, dropout {config.dropout:g};" in printed
    assert config.steps == 15 + int(0.95 * 5790 - 60) // 10 and "--threads" not in command  # 210 s until then
    rows, again = read_log(tmp_path / "log.csv"), in_another_process(command, tmp_path)
    assert again[SAME].values.tolist() == rows[SAME].iloc[[0, -1]].values.tolist()
    assert rows["step"].iloc[-1] == config.steps and config_hash(config) == rows["config"][0]
    assert rows["val_loss"].iloc[0] - rows["val_loss"].iloc[-1] > 0.5  # the model has learned


@pytest.mark.usefixtures("default_signals")
def test_a_run_stopped_before_its_steps_are_settled_is_saved_and_resumed(
    tmp_path, text_file, clock, monkeypatch, capsys
):
    batch = Corpus.batch

    def interrupted(corpus, seed, step, *sizes):
        if step == 5:
            signal.raise_signal(signal.SIGINT)
        return batch(corpus, seed, step, *sizes)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Corpus, "batch", interrupted)
        run(gpt.LanguageModel, gpt.Config, [*flags(tmp_path, text_file), *SIZES, "--minutes", "100"])
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if "to go on" in line]
    assert "stopped after step 6 of 558, saved; to go on: " in line  # in the warm-up, which has 14
    resumed = in_another_process(line.partition("to go on: ")[2], tmp_path)
    alone = in_another_process(re.search("to repeat this run: (.*)", printed.out)[1], tmp_path)
    assert resumed[SAME].values.tolist() == alone[SAME].values.tolist()


def test_modern_is_smaller_for_few_minutes(corpus):
    config = modern.Config(minutes=2, seed=3)
    (smallest, few), (small, many), (own, _) = sizes(config)
    assert own is config and (small.seed, small.minutes) == (3, 2)
    assert settings(small) == settings(modern.Config.from_preset("quick"))
    assert replace(small, n_layer=4) == smallest and few < many
    for other in (gpt.Config(minutes=2), modern.Config(), modern.Config(minutes=2, n_embd=96)):
        assert sizes(other) == [(other, math.inf)]  # another rung, no minutes, or a size that was typed
    steps = many * len(corpus.train) / (8 * 256)  # in so many epochs
    assert is_large_enough(small, Throughput(120 / steps * 1.01, 1, 1), corpus, many)
    assert not is_large_enough(small, Throughput(120 / steps * 0.99, 1, 1), corpus, many)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("given", "dropout"), [((), 0.2), (("--dropout", "0"), 0.0)])
def test_a_run_of_few_minutes_trains_the_first_size_that_is_large_enough(
    given, dropout, tmp_path, text_file, monkeypatch, capsys
):
    monkeypatch.setattr("training.minutes.DROPOUT_BY_EPOCHS", ((0, 0.2),))
    tiny = {"preset": "laptop", "n_embd": 12, "n_head": 2, "block_size": 8}
    monkeypatch.setattr("training.minutes.SMALL", ((tiny | {"n_layer": 1}, 0), (tiny | {"n_layer": 2}, math.inf)))
    run(modern.LanguageModel, modern.Config, [*flags(tmp_path, text_file), "--minutes", "10", *given])
    command = re.search("to repeat this run: (.*)", capsys.readouterr().out)[1]
    config = parse(modern.Config, "", shlex.split(command)[2:])
    rows = read_log(tmp_path / "log.csv")
    assert (config.preset, config.n_layer, config.n_embd, config.dropout) == ("laptop", 2, 12, dropout)
    assert config_hash(config) == rows["config"].iloc[-1] and rows["step"].iloc[-1] == config.steps


def test_dropout_depends_on_the_number_of_epochs(corpus):
    def chosen(epochs: float, **given) -> float:
        config = gpt.Config(steps=-(-int(epochs * len(corpus.train)) // (8 * 256)), **given)
        return with_dropout_for_its_epochs(config, corpus).dropout

    assert [chosen(epochs) for epochs in (1, 3, 6, 7, 11, 30)] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2]


def test_a_long_run_prints_its_length_and_how_to_shorten_it(capsys):
    def message(seconds: float, **state) -> str:
        start = SimpleNamespace(**{"step": 0, "evaluations": []} | state)
        console.print_duration(TrainConfig(steps=1000), start, Throughput(seconds / 1000, 0.0, 0.0))
        return capsys.readouterr().out

    assert "minutes" not in message(100)
    assert "this will take about 50 minutes; for a shorter run, stop it and start again with --minutes 10" in message(
        3000
    )
    assert "about 2.5 hours" in message(9000)
    assert "about 25 minutes more\n" in message(3000, step=500, evaluations=[0])
