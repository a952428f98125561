"""Several processes under torchrun train what one would: the same batches, the same losses, one log, one checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import gpt
from data import UserError, read_log
from training import ranks, run
from training.checkpoint import load_checkpoint
from training.device import choose_device

pytestmark = pytest.mark.usefixtures("usual_signals")

# batches of 96 sequences of 64, so that a rank's 48 are more than a CPU takes at once: parts of unequal size
SIZES = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "64", "--batch-size", "96"]
SETTINGS = [*SIZES, "--dropout", "0", "--eval-interval", "3", "--learning-rate", "1e-2", "--sample-length", "20"]


def arguments(folder: Path, text_file: Path, *flags: str) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]
    return [*SETTINGS, *places, "--device", "cpu", *flags]


def torchrun(n: int, flags: list[str], script: Path = ROOT / "gpt.py") -> subprocess.Popen:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([*start, str(script), *flags], env=environment, **pipes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, text_file) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(gpt.LanguageModel, gpt.Config, arguments(folder, text_file, "--steps", "8"))
    return folder


def test_two_ranks_train_as_one_process_does(alone, tmp_path, text_file):
    with torchrun(2, arguments(tmp_path, text_file, "--steps", "8")) as process:
        said, complaints = process.communicate()
    assert process.returncode == 0, complaints
    one, two = (read_log(folder / "log.csv") for folder in (alone, tmp_path))
    assert two["step"].tolist() == one["step"].tolist() == [0, 3, 6, 8]
    assert two["run"].nunique() == 1
    for name in ("train_loss", "val_loss"):
        assert two[name].tolist() == pytest.approx(one[name].tolist(), abs=5e-6)
    assert two["tokens"].tolist() == one["tokens"].tolist()
    assert one["val_loss"].iloc[0] - one["val_loss"].iloc[-1] > 0.1  # there was something to get wrong
    paths = [next((folder / "runs").glob("*.pt")) for folder in (alone, tmp_path)]
    assert paths[0].name == paths[1].name
    here, there = (load_checkpoint(path)["weights"] for path in paths)
    for name in here:
        torch.testing.assert_close(here[name], there[name], atol=1e-4, rtol=1e-3)
    for line in ("characters to train on", "step      3", "validation loss", "logged in"):
        assert said.count(line) == 1  # rank 0 alone speaks


SLOWER_THAN_THE_OTHER = """
from importlib import import_module
import gpt
from training import ranks, run
from training.pace import Pace
import_module("training.run").measure_pace = lambda *_: Pace(20.0 * (1 + ranks.rank()), evaluation=1.0, sample=1.0)
run(gpt.LanguageModel, gpt.Config)
"""


def test_ranks_agree_on_what_each_measures_for_itself(tmp_path, text_file):
    """How many steps fit into given minutes: one too many on one of them, and it would wait for the others for ever."""
    script = tmp_path / "script.py"
    script.write_text(SLOWER_THAN_THE_OTHER, encoding="utf-8")
    with torchrun(2, arguments(tmp_path, text_file, "--minutes", "10", "--batch-size", "8"), script) as process:
        _, complaints = process.communicate()
    assert process.returncode == 0, complaints
    last = read_log(tmp_path / "log.csv").iloc[-1]
    assert 15 < last["step"] == last["steps"] < 30  # at rank 0's pace; by the other's it would be half of that


def test_a_batch_that_does_not_divide_is_an_error_before_anything_is_done(tmp_path, text_file):
    with torchrun(2, arguments(tmp_path, text_file, "--steps", "8", "--batch-size", "7")) as process:
        said, complaints = process.communicate()
    assert process.returncode != 0
    lines = [line for line in complaints.splitlines() if line.startswith("error")]
    assert lines and all("--batch-size 7 does not divide among 2 processes" in line for line in lines)
    assert said == "" and not (tmp_path / "log.csv").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signal that one process may send to another")
def test_ranks_stop_together_and_one_process_goes_on(tmp_path, text_file, capsys):
    # slowly, for at a high rate two sums in another order have grown apart after 400 steps
    flags = arguments(tmp_path, text_file, "--steps", "400", "--eval-interval", "400", "--learning-rate", "1e-4")
    with torchrun(2, flags) as process:
        for line in process.stdout:
            if line.startswith("step "):  # the untrained loss: training begins
                process.send_signal(signal.SIGINT)
                break
        _, complaints = process.communicate()
    (advice,) = [line for line in complaints.splitlines() if "to go on: " in line]
    assert "to go on: torchrun --nproc-per-node=2 " in advice and "--resume" in advice
    (path,) = (tmp_path / "runs").glob("*.pt")
    step = load_checkpoint(path)["step"]
    assert f"stopped after step {step} of 400, saved" in advice and step < 400
    run(gpt.LanguageModel, gpt.Config, [*flags, "--resume"])
    assert f"going on after step {step} of 400" in capsys.readouterr().out
    rows = read_log(tmp_path / "log.csv")
    assert rows["step"].tolist() == [0, 400] and rows["run"].nunique() == 1
    alone = ["--loss-csv", str(tmp_path / "alone.csv"), "--runs-dir", str(tmp_path / "alone")]
    run(gpt.LanguageModel, gpt.Config, [*flags, *alone])
    wanted = read_log(tmp_path / "alone.csv")["val_loss"].tolist()
    assert rows["val_loss"].tolist() == pytest.approx(wanted, abs=1e-4)
    assert wanted[0] - wanted[1] > 0.1


@pytest.fixture
def as_rank(monkeypatch):
    def become(rank: int, count: int) -> None:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
        for name, value in places.items():
            monkeypatch.setenv(name, str(value))

    return become


def test_the_shares_are_the_batch(as_rank):
    batch = torch.arange(24).view(12, 2)
    shares = []
    for rank in range(3):
        as_rank(rank, 3)
        shares.append(ranks.share(batch))
    assert torch.equal(torch.cat(shares), batch)
    assert {len(share) for share in shares} == {4}


def test_each_process_has_a_gpu_of_its_own(as_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    as_rank(1, 3)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    as_rank(2, 3)
    with pytest.raises(UserError, match="there are 2 GPUs here"):
        choose_device("auto")


def test_processes_do_not_meet_on_mps(as_rank, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    as_rank(0, 2)
    assert choose_device("auto") == torch.device("cpu")
