"""Planning a run: how fast it goes, the steps and the dropout for given minutes, what is told of its length."""

import re
import shlex
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import rung_id
from hypothesis import given
from hypothesis import strategies as st

import bigram
import gpt
from data import UserError, read_log
from stages import modern, residual
from training import TrainConfig, console, run
from training.cli import parse
from training.config import config_hash
from training.device import compile_pays
from training.loop import train
from training.state import State
from training.throughput import Throughput, measure_throughput, with_dropout_for_its_epochs


def flags(folder, text_file) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
    return [*places, "--sample-length", "1", "--device", "cpu"]


def test_steps_for_ten_minutes_by_hand():
    throughput = Throughput(step=1.0, evaluation=20.0, sample=10.0)
    fitted = throughput.fit(TrainConfig(eval_interval=250), 600)
    # a twentieth of 600 s is one evaluation of 20 s; with the first, the last and the sample, 530 s are left to train
    assert (fitted.steps, fitted.eval_interval) == (530, 265)
    assert throughput.seconds(fitted) == 600 and throughput.seconds(fitted, done=265) == 265 + 40 + 10


seconds = st.floats(1e-4, 100)


@given(step=seconds, evaluation=seconds, sample=seconds, interval=st.integers(1, 1000), given=st.floats(1000, 1e5))
def test_a_fitted_run_fills_its_time_and_no_more(step, evaluation, sample, interval, given):
    throughput = Throughput(step, evaluation, sample)
    fitted = throughput.fit(TrainConfig(eval_interval=interval), given)
    assert throughput.seconds(fitted) <= given * (1 + 1e-9)
    assert throughput.seconds(fitted) + evaluation + step >= 0.94 * given
    assert fitted.eval_interval >= interval


def test_too_little_time_is_said():
    with pytest.raises(UserError, match=r"--minutes 0\.5 leaves no time.* 49 s here"):  # 3 s have gone before
        Throughput(step=1, evaluation=20, sample=5).fit(TrainConfig(minutes=0.5), 27)


def test_throughput_is_that_of_the_model(corpus):
    class Slow(bigram.LanguageModel):
        def forward(self, idx):
            time.sleep(0.02)
            return super().forward(idx)

    config = bigram.Config(sample_length=100)
    throughput = measure_throughput(Slow(corpus.tokenizer.vocab_size, config), corpus, config, "fp32")
    windows = -(-(len(corpus.val) - 1) // 8)  # evaluated 512 at a time, for each of the two splits
    assert throughput.step >= 0.02
    assert throughput.evaluation >= 0.9 * 2 * 0.02 * windows / 512
    assert throughput.sample >= 100 * 0.02


@pytest.mark.parametrize("rung", [residual, gpt, modern], ids=rung_id)
def test_measuring_changes_nothing_of_what_follows(rung, corpus, small):
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


@pytest.mark.parametrize(("given", "dropout"), [([], 0.1), (["--dropout", "0.5"], 0.5)], ids=["picked", "given"])
def test_a_run_of_minutes_is_the_run_of_as_many_steps(given, dropout, tmp_path, text_file, monkeypatch, capsys):
    # an hour a step, so that the seconds that have really gone by cost none
    monkeypatch.setattr(sys.modules["training.run"], "measure_throughput", lambda *_, **__: Throughput(3600, 60, 0))
    sizes = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "256"]
    run(gpt.LanguageModel, gpt.Config, [*flags(tmp_path, text_file), *sizes, *given, "--minutes", "1190"])
    said = capsys.readouterr().out
    command = shlex.split(re.search("to repeat this run: (.*)", said)[1])[2:]
    config = parse(gpt.Config, "", command)
    assert config.steps == 18  # 19.8 hours, of which a twentieth is kept for evaluations
    assert (config.minutes, config.dropout) == (0.0, dropout)  # 7 epochs
    assert "minutes, not 1190: the machine was faster" in said
    run(gpt.LanguageModel, gpt.Config, command)
    rows = read_log(tmp_path / "log.csv")
    assert set(rows["config"]) == {config_hash(config)} and rows["run"].nunique() == 2
    one, other = (rows[rows["run"] == name] for name in rows["run"].unique())
    same = ["step", "steps", "train_loss", "val_loss", "tokens", "flags"]
    assert one[same].values.tolist() == other[same].values.tolist()


def test_dropout_goes_by_epochs(corpus):
    def chosen(epochs: float, **given) -> float:
        steps = -(-int(epochs * len(corpus.train)) // (8 * 256))
        return with_dropout_for_its_epochs(gpt.Config(steps=steps, **given), corpus).dropout

    assert [chosen(epochs) for epochs in (1, 3, 5, 7, 9, 30)] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2]
    assert chosen(30, dropout=0.5) == 0.5 and chosen(1, dropout=0.1) == 0.1
    small = residual.Config(steps=1)
    assert with_dropout_for_its_epochs(small, corpus) == small


def test_a_run_that_misses_its_minutes_says_so_and_what_would_not(capsys):
    def told(took: float, step: float) -> str:
        losses = [SimpleNamespace(val_loss=4.0, seconds=0.0), SimpleNamespace(val_loss=2.0, seconds=300 * step)]
        record = SimpleNamespace(metadata={"run": "a run"}, unsaved=None, path=lambda finished: "model.pt")
        console.report("text", TrainConfig(minutes=10, steps=300), SimpleNamespace(evaluations=losses), record, took)
        return capsys.readouterr().out.partition("model saved as model.pt\n")[2]

    assert re.match("this took 4.7 minutes, not 10: the machine was faster than .* --steps 460 fills", told(280, 2.0))
    assert re.match("this took 15.0 minutes, not 10: the machine was slower .* --steps 100 fills", told(900, 1.5))
    assert "--steps 1 fills" in told(900, 0.5)  # all of the time went elsewhere
    assert told(545, 0.5) == told(500, 60) == ""  # near enough, and as near as whole steps come


def test_a_long_run_says_so_and_how_to_have_it_shorter(capsys):
    def told(seconds: float, **state) -> str:
        start = SimpleNamespace(**{"step": 0, "evaluations": []} | state)
        console.say_how_long(TrainConfig(steps=1000), start, Throughput(seconds / 1000, 0.0, 0.0))
        return capsys.readouterr().out

    assert "minutes" not in told(100)
    assert "this will take about 50 minutes; for less, stop it and start again with --minutes 10" in told(3000)
    assert "about 2.5 hours" in told(9000)
    assert "about 25 minutes more\n" in told(3000, step=500, evaluations=[0])


def test_the_compiled_model_trains_and_the_plain_one_is_evaluated(corpus, small, monkeypatch):
    calls = []

    def compiler(model):
        return lambda idx: calls.append(model.training) or model(idx)

    monkeypatch.setattr(torch, "compile", compiler)
    model, config = bigram.LanguageModel(corpus.tokenizer.vocab_size, small(bigram)), small(bigram, steps=3)
    list(train(State.at_start(model, config, compiled=True), corpus, config, "fp32", range(3)))
    assert calls == [True, True, True]  # a call a step, none by an evaluation


def test_a_run_goes_on_without_a_compiler_that_fails(tmp_path, text_file, monkeypatch, capsys):
    def broken(model):
        def forward(idx):
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no compiler"), None)

        return forward

    monkeypatch.setattr(sys.modules["training.run"], "compile_pays", lambda device, seconds: True)
    monkeypatch.setattr(torch, "compile", broken)
    run(bigram.LanguageModel, bigram.Config, [*flags(tmp_path, text_file), "--steps", "2"])
    said = capsys.readouterr()
    assert "going on without" in said.err and "validation loss" in said.out


def test_the_compiler_is_for_long_runs_on_cuda(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("training.device.find_spec", lambda name: object())
    assert compile_pays(cuda, 3600) and not compile_pays(cuda, 30)
    assert not compile_pays(torch.device("cpu"), 10**6)
    monkeypatch.setattr("training.device.find_spec", lambda name: None)  # as on Windows, where torch brings no Triton
    assert not compile_pays(cuda, 3600)
