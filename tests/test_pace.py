"""Planning a run: what is measured before it, the steps that fit into given minutes, the recipes."""

import dataclasses
import re
import sys
import time

import pytest
import torch
from conftest import rung_id
from hypothesis import given
from hypothesis import strategies as st

import bigram
import gpt
from data import UserError, read_log
from stages import pre_norm
from training import TrainConfig, run
from training.cli import parse
from training.config import fingerprint
from training.device import worth_compiling
from training.loop import learning_rate, train
from training.pace import Pace, measure_pace
from training.run import _off_the_minutes
from training.state import State


def test_steps_for_ten_minutes_by_hand():
    pace = Pace(step=1.0, evaluation=20.0, sample=10.0)
    fitted = pace.fit(TrainConfig(eval_interval=250), 600)
    # a twentieth of 600 s is one evaluation of 20 s; with the first, the last and the sample, 530 s are left to train
    assert (fitted.steps, fitted.eval_interval) == (530, 265)
    assert pace.seconds(fitted) == 600


seconds = st.floats(1e-4, 100)


@given(step=seconds, evaluation=seconds, sample=seconds, interval=st.integers(1, 1000), budget=st.floats(1000, 1e5))
def test_a_fitted_run_fills_its_time_and_no_more(step, evaluation, sample, interval, budget):
    pace = Pace(step, evaluation, sample)
    fitted = pace.fit(TrainConfig(eval_interval=interval), budget)
    assert pace.seconds(fitted) <= budget * (1 + 1e-9)
    assert pace.seconds(fitted) + evaluation + step >= 0.94 * budget
    assert fitted.eval_interval >= interval


def test_too_little_time_is_said():
    with pytest.raises(UserError, match=r"--minutes 0\.5 leaves no time.* 49 s here"):  # 3 s have gone before
        Pace(step=1, evaluation=20, sample=5).fit(TrainConfig(minutes=0.5), 27)


def test_the_pace_is_that_of_the_model(corpus):
    class Slow(bigram.LanguageModel):
        def forward(self, idx):
            time.sleep(0.02)
            return super().forward(idx)

    config = bigram.Config(sample_length=100)
    pace = measure_pace(Slow(corpus.tokenizer.vocab_size, config), corpus, config, "fp32")
    windows = -(-(len(corpus.val) - 1) // 8)  # evaluated 512 at a time, for each of the two splits
    assert pace.step >= 0.02
    assert pace.evaluation >= 0.9 * 2 * 0.02 * windows / 512
    assert pace.sample >= 100 * 0.02


def test_measuring_the_pace_changes_nothing(rung, corpus, small):
    config = small(rung, steps=3, **({"dropout": 0.3} if rung is gpt else {}))

    def trained(measured: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = rung.LanguageModel(corpus.tokenizer.vocab_size, config)
        if measured:
            pace = measure_pace(model, corpus, config, "fp32")
            assert pace.step > 0 and pace.evaluation > 0 and pace.sample > 0
        list(train(State.at_start(model, config), corpus, config, "fp32", range(3)))
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


def test_a_run_of_minutes_is_the_run_of_as_many_steps(tmp_path, text_file, monkeypatch, capsys):
    def logged(*flags: str):
        args = ["--corpus", str(text_file), "--sample-length", "5", "--runs-dir", str(tmp_path), "--device", "cpu"]
        sizes = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "2"]
        run(gpt.LanguageModel, gpt.Config, [*args, *sizes, "--loss-csv", str(tmp_path / "log.csv"), *flags])
        return read_log(tmp_path / "log.csv").iloc[-1]

    # an hour a step, so that the seconds that have really gone by cost none
    monkeypatch.setattr(sys.modules["training.run"], "measure_pace", lambda *args, **kwargs: Pace(3600, 60, 0))
    in_time = logged("--minutes", "1190")
    assert in_time["steps"] == 18  # 19.8 hours, of which a twentieth is kept for evaluations
    counted = logged("--steps", "18")
    same = ["step", "steps", "train_loss", "val_loss", "tokens", "config", "flags"]
    assert counted[same].tolist() == in_time[same].tolist()
    assert "--steps 18" in in_time["flags"] and "--minutes" not in in_time["flags"]
    assert capsys.readouterr().out.count("minutes, not 1190: ") == 1  # of the two runs, that which had them


@pytest.mark.parametrize(
    ("took", "step", "said"),
    [
        (280, 2.0, "took 4.7 minutes, not 10: the machine was faster than while .* --steps 460 fills"),
        (900, 1.5, "took 15.0 minutes, not 10: the machine was slower than while .* --steps 100 fills"),
        (900, 0.5, "--steps 1 fills"),  # all of it went elsewhere
        (545, 0.5, "^$"),
        (655, 0.5, "^$"),
        (500, 60, "^$"),  # whole steps come no closer
    ],
)
def test_a_run_that_misses_its_minutes_says_so_and_what_would_not(took, step, said):
    assert re.search(said, _off_the_minutes(TrainConfig(minutes=10, steps=300), took, step))


def test_the_learning_rate_falls_to_the_end_of_the_steps_that_fit():
    config = Pace(1, 1, 1).fit(gpt.Config(), 3600)
    assert 0 < learning_rate(config.steps - 1, config) < 1.2 * config.learning_rate / config.steps


def test_the_compiled_model_trains_and_the_plain_one_is_evaluated(corpus, small, monkeypatch):
    calls = []

    def compiler(model):
        return lambda idx: calls.append(model.training) or model(idx)

    monkeypatch.setattr(torch, "compile", compiler)
    model, config = bigram.LanguageModel(corpus.tokenizer.vocab_size, small(bigram)), small(bigram, steps=3)
    list(train(State.at_start(model, config, compiled=True), corpus, config, "fp32", range(3)))
    assert calls == [True, True, True]  # a call a step, none by an evaluation


def test_a_compiler_that_fails_is_done_without(tmp_path, text_file, monkeypatch, capsys):
    run_module = sys.modules["training.run"]
    monkeypatch.setattr(run_module, "worth_compiling", lambda device, seconds: True)

    def broken(model):
        def forward(idx):
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no compiler"), None)

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    flags = ["--corpus", str(text_file), "--steps", "2", "--sample-length", "1", "--device", "cpu"]
    run(bigram.LanguageModel, bigram.Config, [*flags, "--runs-dir", str(tmp_path), "--loss-csv", str(tmp_path / "log")])
    said = capsys.readouterr()
    assert "going on without" in said.err and "validation loss" in said.out


@pytest.mark.parametrize("module", [bigram, gpt], ids=rung_id)
def test_a_long_run_says_so_and_how_to_have_it_shorter(module, tmp_path, text_file, monkeypatch, capsys):
    flags = ["--corpus", str(text_file), "--steps", "2", "--sample-length", "1", "--device", "cpu"]
    flags += ["--runs-dir", str(tmp_path), "--loss-csv", str(tmp_path / "log.csv")]
    flags += ["--n-embd", "12", "--n-layer", "1", "--block-size", "8"] if module is gpt else []
    run(module.LanguageModel, module.Config, flags)
    assert "--minutes" not in capsys.readouterr().out
    monkeypatch.setattr(sys.modules["training.run"], "LONG", 0)
    run(module.LanguageModel, module.Config, flags)
    said = capsys.readouterr().out
    assert "this will take about 0 minutes" in said and "--minutes 1" in said
    assert said.index("this will take") < said.index("validation loss")


def test_the_lectures_recipe_is_one_flag():
    lecture = parse(gpt.Config, "", ["--recipe", "lecture", "--seed", "3"])
    for name, value in {
        "steps": 5000,
        "batch_size": 64,
        "block_size": 256,
        "learning_rate": 3e-4,
        "eval_interval": 500,
        "n_embd": 384,
        "n_head": 6,
        "n_layer": 6,
        "dropout": 0.2,
        "seed": 3,
    }.items():
        assert getattr(lecture, name) == value
    assert {learning_rate(step, lecture) for step in (0, 100, 4999)} == {3e-4}
    assert parse(gpt.Config, "", ["--steps", "7", "--recipe=lecture"]) == dataclasses.replace(lecture, seed=0, steps=7)
    assert parse(gpt.Config, "", []) == gpt.Config()
    assert fingerprint(lecture) != fingerprint(gpt.Config())


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="recipe"):
        parse(gpt.Config, "", ["--recipe", "cake"])
    with pytest.raises(UserError, match="recipe"):
        parse(pre_norm.Config, "", ["--recipe", "lecture"])
    with pytest.raises(UserError, match="recipe"):
        parse(gpt.Config, "", ["--recipe"])


def test_the_compiler_is_for_long_runs_on_cuda(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("training.device.find_spec", lambda name: object())
    assert worth_compiling(cuda, 3600) and not worth_compiling(cuda, 30)
    assert not worth_compiling(torch.device("cpu"), 10**6)
    monkeypatch.setattr("training.device.find_spec", lambda name: None)  # as on Windows, where torch brings no Triton
    assert not worth_compiling(cuda, 3600)
