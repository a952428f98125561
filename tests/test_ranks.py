"""Several processes under torchrun train like one process: the same batches and losses, one log, one checkpoint."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpt
from data import UserError, read_log
from training import run
from training.checkpoint import load_checkpoint
from training.device import choose_device
from training.run import set_up

pytestmark = pytest.mark.usefixtures("default_signals")

# batches of 96 sequences of 64: a rank's 48 are more than one micro-batch on a CPU, and micro-batches differ in size
SETTINGS = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "64", "--batch-size", "96"]
SETTINGS += ["--dropout", "0", "--eval-interval", "8", "--learning-rate", "1e-2", "--sample-length", "20"]

# The second process is half as fast as the first. It gets a signal in step 7; then the run is resumed.
RUN = """
import contextlib, signal, sys, time
import torch
import gpt
from data import Corpus, read_log
from training import ranks, run
from training.throughput import Throughput
own_speed = Throughput(20.0 * (1 + ranks.rank()), evaluation=1.0, sample=1.0)
sys.modules["training.run"].measure_throughput = lambda *_: own_speed
seconds, batch = [0.0], Corpus.batch
def clock():
    seconds[0] += 0.001
    return seconds[0]
time.perf_counter = clock
def interrupted(corpus, seed, step, *sizes):
    seconds[0] += own_speed.step
    if STOP and step == 6 and ranks.rank() == 1:
        signal.raise_signal(signal.SIGTERM)
    return batch(corpus, seed, step, *sizes)
Corpus.batch = interrupted
log, *flags = sys.argv[1:]
with ranks.process_group(torch.device("cpu")):  # a process can join only one process group
    ranks.process_group = lambda device: contextlib.nullcontext()
    STOP = True
    try:
        run(gpt.LanguageModel, gpt.Config, [*flags, "--minutes", "10"])
    except SystemExit as stop:
        if stop.code < 128:
            raise
    STOP = False
    settled = ["--steps", str(read_log(log)["steps"][0]), "--warmup-steps", "1"]
    run(gpt.LanguageModel, gpt.Config, [*flags, *settled, "--resume"])
"""


def arguments(folder: Path, text_file: Path, *flags: str) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]
    return [*SETTINGS, *places, "--device", "cpu", *flags]


def test_two_ranks_plan_minutes_once_stop_together_and_train_like_one_process(tmp_path, text_file):
    (tmp_path / "script.py").write_text(RUN, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "script.py"), str(tmp_path / "log.csv"), *arguments(tmp_path, text_file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    for line in ("step      8", "validation loss", "logged in"):
        assert done.stdout.count(line) == 1  # rank 0 alone prints
    advice = re.search("stopped after step 7 of .*, saved; to go on: torchrun --nproc-per-node=2 (.*)", done.stderr)[1]
    flags = [flag for flag in shlex.split(advice)[1:] if flag != "--resume"]
    places = ["--loss-csv", str(tmp_path / "alone.csv"), "--runs-dir", str(tmp_path / "alone")]
    run(gpt.LanguageModel, gpt.Config, [*flags, *places])
    rows, wanted = read_log(tmp_path / "log.csv"), read_log(tmp_path / "alone.csv")
    assert rows["run"].nunique() == 1
    rows = rows[rows["step"].isin(wanted["step"])].reset_index(
        drop=True
    )  # with --minutes, evaluations are at others too
    assert 15 < rows["steps"][0] < 30  # as rank 0 measured; rank 1 alone would have half as many
    for name in ("step", "steps", "tokens", "config", "flags"):
        assert rows[name].tolist() == wanted[name].tolist()
    for name in ("train_loss", "val_loss"):
        assert rows[name].tolist() == pytest.approx(wanted[name].tolist(), abs=1e-5)
    assert wanted["val_loss"].iloc[0] - wanted["val_loss"].iloc[-1] > 0.3  # the model has learned
    paths = [next((tmp_path / name).glob("*.pt")) for name in ("runs", "alone")]
    assert paths[0].name == paths[1].name
    here, there = (load_checkpoint(path)["weights"] for path in paths)
    for name in here:
        torch.testing.assert_close(here[name], there[name], atol=1e-4, rtol=1e-3)


@pytest.fixture
def as_rank(monkeypatch):
    def become(rank: int, count: int) -> None:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
        for name, value in places.items():
            monkeypatch.setenv(name, str(value))

    return become


def test_a_batch_size_that_the_ranks_do_not_divide_is_an_error(as_rank, tmp_path):
    as_rank(1, 2)
    config = gpt.Config(batch_size=7, loss_csv=tmp_path / "log.csv", runs_dir=tmp_path / "runs")
    with pytest.raises(UserError, match="--batch-size 7 is not divisible by 2 processes; use --batch-size 6"):
        set_up(gpt.LanguageModel, config, torch.device("cpu"))


def test_each_rank_has_its_own_gpu_and_none_uses_mps(as_rank, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    as_rank(1, 3)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    as_rank(2, 3)
    with pytest.raises(UserError, match="there are 2 GPUs here"):
        choose_device("auto")
