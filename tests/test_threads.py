"""The threads of a run on a CPU: how many it uses, and that denormals are zero in each."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import gpt
from data import Corpus, read_log
from training import TrainConfig, run
from training.config import changed_flags, config_hash
from training.throughput import Throughput

pytestmark = pytest.mark.usefixtures("default_signals")

SIZES = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "4"]
SECONDS = {  # of a step, by the number of threads
    "alone": {4: 1.0, 2: 1.6, 1: 3.0},
    "beside others": {4: 5.0, 2: 2.0, 1: 1.5},
    "beside one other": {4: 3.0, 2: 1.6, 1: 2.9},
    "hardly a difference": {4: 1.0, 2: 0.95, 1: 0.5},
}


@pytest.fixture
def four_threads(monkeypatch):
    """As on a machine with four cores, without OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(monkeypatch) -> list[int]:
    """The numbers of threads that were tried. The time of a step is that in SECONDS, for `timed.case`."""

    class Timed(list):
        case = "alone"
        factor = 100.0

    numbers = Timed()

    def measure(*_, **__) -> Throughput:
        numbers.append(torch.get_num_threads())
        return Throughput(SECONDS[numbers.case].get(numbers[-1], 1.0) * numbers.factor, 1e-3, 0.0)

    monkeypatch.setattr(sys.modules["training.run"], "measure_throughput", measure)
    return numbers


def train_in(folder: Path, text_file: Path, *flags: str) -> None:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
    common = ["--steps", "3", "--sample-length", "1", "--device", "cpu", *SIZES, *places]
    run(gpt.LanguageModel, gpt.Config, [*common, *flags])


def logged(folder: Path) -> int:
    return int(read_log(folder / "log.csv")["threads"].iloc[-1])


@pytest.mark.parametrize(
    ("case", "tried", "chosen"),
    [
        ("alone", [4, 2], 4),
        ("beside others", [4, 2, 1], 1),
        ("beside one other", [4, 2, 1], 2),
        ("hardly a difference", [4, 2], 4),
    ],
)
def test_a_long_run_uses_the_fastest_number_of_threads(
    case, tried, chosen, timed, four_threads, tmp_path, text_file, capsys
):
    timed.case = case
    train_in(tmp_path, text_file)
    assert (timed, logged(tmp_path), torch.get_num_threads()) == (tried, chosen, 4)
    assert f"fp32 on cpu ({chosen} thread{'s' * (chosen > 1)}), seed 0" in capsys.readouterr().out


@pytest.mark.parametrize(("case", "named"), [("alone", ""), ("beside others", "--threads 1")])
def test_the_command_of_a_minutes_run_names_threads_if_fewer_are_faster(
    case, named, timed, four_threads, tmp_path, text_file, monkeypatch, capsys
):
    timed.case = case
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))  # one second more at each call
    train_in(tmp_path, text_file, "--minutes", "10")
    repeat = capsys.readouterr().out.partition("to repeat this run: ")[2].splitlines()[0]
    assert " ".join(re.findall(r"--threads \S+", repeat)) == named


def test_a_given_number_of_threads_is_kept(timed, four_threads, tmp_path, text_file, monkeypatch):
    timed.case = "beside others"
    train_in(tmp_path, text_file, "--threads", "3")
    assert (timed, logged(tmp_path), torch.get_num_threads()) == ([3], 3, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    train_in(tmp_path, text_file)
    assert (timed[1:], logged(tmp_path)) == ([4], 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    timed.factor = 1.0  # a run of 15 seconds is too short to try
    train_in(tmp_path, text_file)
    assert (timed[2:], logged(tmp_path)) == ([4], 4)


def test_a_resumed_run_keeps_its_number_of_threads(timed, four_threads, tmp_path, text_file, monkeypatch, capsys):
    batch = Corpus.batch

    def interrupted(corpus, seed, step, *sizes):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(corpus, seed, step, *sizes)

    timed.case = "beside one other"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Corpus, "batch", interrupted)
        train_in(tmp_path, text_file)
    timed.case = "alone"
    capsys.readouterr()
    train_in(tmp_path, text_file, "--resume")
    printed = capsys.readouterr()
    assert "on cpu (2 threads)" in printed.out and "WARNING" not in printed.err
    assert (timed, logged(tmp_path)) == ([4, 2, 1, 2], 2)


def test_the_number_of_threads_does_not_change_the_config_hash():
    assert TrainConfig(threads=3) != TrainConfig()
    assert config_hash(TrainConfig(threads=3)) == config_hash(TrainConfig()) and not changed_flags(
        TrainConfig(threads=3)
    )


DENORMALS = """
import sys
import torch
from training.device import choose_device
if sys.argv[1] == "a run":
    choose_device("cpu")
assert torch.get_num_threads() == 2
product = torch.full((1 << 22,), 1e-30) * 1e-10  # each of two threads computes a half
bits = product.view(torch.int32)  # a comparison of floats would take denormals as zero, too
print(*[int(half.count_nonzero()) for half in bits.chunk(2)])
"""


@pytest.mark.parametrize(("who", "left"), [("a run", "0 0"), ("torch by itself", f"{1 << 21} {1 << 21}")])
def test_denormals_are_zero_in_every_thread(who, left):
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DENORMALS, who]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == (left, "")
