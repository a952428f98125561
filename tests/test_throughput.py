"""Planning a run: how fast it goes, the steps and the dropout for given minutes, what is told of its length."""

import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import rung_id

import gpt
from data import UserError, read_log
from stages import modern, residual
from training import TrainConfig, console, run
from training.cli import parse
from training.config import config_hash
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


def test_too_little_time_is_said():
    with pytest.raises(UserError, match=r"--minutes 0\.5 leaves no time.* 49 s here"):  # 3 s have gone before
        Throughput(step=1, evaluation=20, sample=5).fit(TrainConfig(minutes=0.5), 27)


@pytest.mark.parametrize("rung", [gpt, modern], ids=rung_id)
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


def test_a_run_of_minutes_is_the_run_of_as_many_steps(tmp_path, text_file, monkeypatch, capsys):
    # an hour a step, so that the seconds that have really gone by cost none
    monkeypatch.setattr(sys.modules["training.run"], "measure_throughput", lambda *_, **__: Throughput(3600, 60, 0))
    sizes = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "256"]
    run(gpt.LanguageModel, gpt.Config, [*flags(tmp_path, text_file), *sizes, "--minutes", "1190"])
    said = capsys.readouterr().out
    command = shlex.split(re.search("to repeat this run: (.*)", said)[1])[2:]
    config = parse(gpt.Config, "", command)
    assert config.steps == 18  # 19.8 hours, of which a twentieth is kept for evaluations
    assert (config.minutes, config.dropout) == (0.0, 0.1)  # 7 epochs
    assert "minutes, not 1190: the machine was faster" in said
    run(gpt.LanguageModel, gpt.Config, command)
    rows = read_log(tmp_path / "log.csv")
    assert set(rows["config"]) == {config_hash(config)} and rows["run"].nunique() == 2
    one, other = (rows[rows["run"] == name] for name in rows["run"].unique())
    same = ["step", "steps", "train_loss", "val_loss", "tokens", "flags"]
    assert one[same].values.tolist() == other[same].values.tolist()


def test_dropout_goes_by_epochs(corpus):
    def chosen(epochs: float, **given) -> float:
        config = gpt.Config(steps=-(-int(epochs * len(corpus.train)) // (8 * 256)), **given)
        return with_dropout_for_its_epochs(config, corpus).dropout

    assert [chosen(epochs) for epochs in (1, 3, 6, 7, 11, 30)] == [0.0, 0.0, 0.1, 0.1, 0.2, 0.2]
    assert chosen(30, dropout=0.5) == 0.5 and chosen(1, dropout=0.1) == 0.1
    without = residual.Config(steps=1)
    assert with_dropout_for_its_epochs(without, corpus) == without


def test_a_long_run_says_so_and_how_to_have_it_shorter(capsys):
    def told(seconds: float, **state) -> str:
        start = SimpleNamespace(**{"step": 0, "evaluations": []} | state)
        console.say_how_long(TrainConfig(steps=1000), start, Throughput(seconds / 1000, 0.0, 0.0))
        return capsys.readouterr().out

    assert "minutes" not in told(100)
    assert "this will take about 50 minutes; for less, stop it and start again with --minutes 10" in told(3000)
    assert "about 2.5 hours" in told(9000)
    assert "about 25 minutes more\n" in told(3000, step=500, evaluations=[0])
