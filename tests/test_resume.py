"""Runs that are stopped or killed, or find a full disk or a wrong file, lose nothing and resume to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, rung_id

import gpt
from data import Corpus, read_log
from stages import modern, residual
from training import run
from training.checkpoint import load_checkpoint
from training.cli import as_typed, parse
from training.throughput import Throughput

pytestmark = pytest.mark.usefixtures("default_signals")

# 12 steps of 64 windows are more than an epoch; rungs from 8 on have dropout and a learning rate that changes
SETTINGS = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "64"]
SETTINGS += ["--steps", "12", "--eval-interval", "4", "--sample-length", "5", "--device", "cpu"]
SAME = ["rung", "seed", "step", "steps", "train_loss", "val_loss", "tokens", "config", "flags", "rung_code"]


def arguments(folder: Path, text_file: Path, *flags: str) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]
    return [*SETTINGS, *places, *flags]


def train_in(folder: Path, text_file: Path, *flags: str, rung=gpt) -> None:
    run(rung.LanguageModel, rung.Config, arguments(folder, text_file, *flags))


def stopped(folder: Path, text_file: Path, *flags: str, rung=gpt) -> int:
    """The exit status of a run that does not reach its end."""
    with pytest.raises(SystemExit) as stop:
        train_in(folder, text_file, *flags, rung=rung)
    return stop.value.code


def checkpoint(folder: Path, *, finished: bool = False) -> Path:
    (path,) = [path for path in (folder / "runs").glob("*.pt") if path.name.endswith(".partial.pt") != finished]
    return path


def steps_logged(folder: Path) -> list[int]:
    return read_log(folder / "log.csv")["step"].tolist()


@contextlib.contextmanager
def at_step(step: int, action):
    """Inside, `action` is called as the batch of that step is drawn."""
    batch, called = Corpus.batch, []

    def interrupted(corpus, seed, number, *sizes):
        if number == step and not called:
            called.append(action)
            action()
        return batch(corpus, seed, number, *sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Corpus, "batch", interrupted)
        yield
    assert called


def stop_at(step: int, folder: Path, text_file: Path, *flags: str, rung=gpt, number: int = signal.SIGINT) -> None:
    with at_step(step, lambda: signal.raise_signal(number)):
        assert stopped(folder, text_file, *flags, rung=rung) == 128 + number


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """Saves time: test_throughput.py tests that measuring changes nothing."""
    monkeypatch.setattr(sys.modules["training.run"], "measure_throughput", lambda *_, **__: Throughput(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, text_file):
    """The folder of a rung's run that was not interrupted."""
    folders = {}

    def folder(rung=gpt) -> Path:
        if rung not in folders:
            folders[rung] = tmp_path_factory.mktemp(rung_id(rung))
            train_in(folders[rung], text_file, rung=rung)
        return folders[rung]

    return folder


@pytest.fixture
def interrupted(tmp_path, text_file, capsys) -> Path:
    """The folder of a run of gpt.py that was stopped after 7 of 12 steps."""
    stop_at(6, tmp_path, text_file)
    capsys.readouterr()
    return tmp_path


def assert_same(folder: Path, uninterrupted: Path) -> None:
    """The same weights to the bit, the same rows, each once and all of one run, and no other files in the folder."""
    here, there = (load_checkpoint(checkpoint(place, finished=True)) for place in (folder, uninterrupted))
    assert here["weights"].keys() == there["weights"].keys()
    assert all(torch.equal(here["weights"][name], there["weights"][name]) for name in there["weights"])
    rows, wanted = (read_log(place / "log.csv") for place in (folder, uninterrupted))
    assert rows[SAME].to_dict("records") == wanted[SAME].to_dict("records")
    assert (folder / "log.csv").read_text(encoding="utf-8").count("\n") == 1 + len(rows)
    assert rows["run"].nunique() == 1 and rows["seconds"].is_monotonic_increasing
    assert sorted(path.suffix for path in (folder / "runs").iterdir()) == [".lock", ".pt"]


# Stopped and killed


@pytest.mark.parametrize(
    ("rung", "name"), [(residual, "SIGTERM"), (gpt, "SIGINT"), (modern, "SIGINT")], ids=["residual", "gpt", "modern"]
)
def test_the_printed_command_resumes_a_stopped_run_to_the_same_bits(
    rung, name, uninterrupted, tmp_path, text_file, capfd
):
    number = getattr(signal, name)
    stop_at(6, tmp_path, text_file, rung=rung, number=number)
    assert load_checkpoint(checkpoint(tmp_path))["step"] == 7  # the step that the signal came in was finished
    assert steps_logged(tmp_path) == [0, 4]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "to go on" in line]
    command = shlex.split(line.partition("to go on: ")[2])
    assert "stopped after step 7 of 12, saved" in line
    assert command[0] == "python" and (Path.cwd() / command[1]).resolve() == Path(rung.__file__)
    run(rung.LanguageModel, rung.Config, command[2:])
    assert_same(tmp_path, uninterrupted(rung))


def test_a_second_ctrl_c_stops_at_once(tmp_path, text_file):
    with at_step(6, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)]):
        assert stopped(tmp_path, text_file) == 130
    assert load_checkpoint(checkpoint(tmp_path))["step"] == 4


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(tmp_path, text_file):
    """As SIGHUP under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with at_step(6, lambda: signal.raise_signal(signal.SIGHUP)):
        train_in(tmp_path, text_file)
    assert load_checkpoint(next((tmp_path / "runs").glob("*.pt")))["step"] == 12


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signal that one process may send to another")
def test_a_closed_pipe_does_not_end_a_run(tmp_path, text_file):
    """`python gpt.py | head -5`, then a closed terminal: the run goes on after the first and is saved at the second."""
    (tmp_path / "naïve.txt").write_bytes(text_file.read_bytes())  # in an ASCII terminal
    command = [sys.executable, "gpt.py", *arguments(tmp_path, tmp_path / "naïve.txt"), "--steps", "1000000"]
    command += ["--eval-interval", "1"]
    environment = one_thread() | {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            if b"step " in line and b"train " in line:
                break
        process.stdout.close()
        while (tmp_path / "log.csv").read_bytes().count(b"\n") < 6:  # the run goes on
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
    assert process.returncode in (128 + signal.SIGHUP, 120)  # 120: Python could not flush its output
    assert load_checkpoint(checkpoint(tmp_path))["step"] == max(steps_logged(tmp_path)) >= 4


def one_thread() -> dict[str, str]:
    """The environment of a child with as many threads as this process: bits depend on the number of threads."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "utf-8"}


KILLS = {  # the run is killed just before a call: a module or class, its function, and the arguments
    "in the middle of a checkpoint": "torch, 'save', lambda content, file: content['step'] == 8 and half(file)",
    "between a checkpoint and its row": "LossLog, 'append', lambda log, row: row['step'] == 8",
    "between two steps": "console, 'show_evaluation', lambda evaluation, bar: evaluation.step == 8",
    "before the partial file is removed": "Path, 'unlink', lambda path, **_: path.name.endswith('.partial.pt')",
    "before the last row": "LossLog, 'append', lambda log, row: row['step'] == 12",
}
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import gpt
from data import LossLog
from training import console, run
from training.throughput import Throughput

def half(file):
    file.write(b"half")
    file.flush()
    return True

def kill_before(owner, name, due):
    was = getattr(owner, name)
    def killing(*args, **kwargs):
        if due(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        return was(*args, **kwargs)
    setattr(owner, name, killing)

sys.modules["training.run"].measure_throughput = lambda *_: Throughput(1.0, 1.0, 1.0)
torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports much; here once for all children
for folder, kill in enumerate(KILLS):
    child = os.fork()
    if not child:
        try:
            kill_before(*eval(kill))
            places = ["--loss-csv", f"{folder}/log.csv", "--runs-dir", f"{folder}/runs"]
            run(gpt.LanguageModel, gpt.Config, sys.argv[1:] + places)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), kill
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, text_file) -> Path:
    """A folder of folders, 0, 1, ...: each of a run that was killed at one of the moments above."""
    folder = tmp_path_factory.mktemp("killed")
    code = f"KILLS = {list(KILLS.values())}\n{KILLED}"
    done = subprocess.run(
        [sys.executable, "-c", code, *SETTINGS, "--corpus", text_file], env=one_thread(), cwd=folder, stderr=-1
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.skipif(os.name != "posix", reason="Windows has no fork")
@pytest.mark.parametrize("number", range(len(KILLS)), ids=KILLS)
def test_a_killed_run_resumes_to_the_same_bits(number, killed, uninterrupted, text_file):
    folder = killed / str(number)
    train_in(folder, text_file, "--resume")
    assert_same(folder, uninterrupted())


# Messages, and several processes


def test_the_printed_command_is_read_back_as_the_same_settings():
    for prompt, loss_csv in (("-- it's", "a b.csv"), ('"$HOME"\\', "-x.csv"), ("é 🎭 ;&", "it's.csv")):
        config = gpt.Config.from_preset("laptop")
        config = dataclasses.replace(config, prompt=prompt, loss_csv=Path(loss_csv), learning_rate=1e-9, resume=True)
        assert parse(gpt.Config, "", shlex.split(as_typed(ROOT / "gpt.py", config))[2:]) == config


def test_two_processes_cannot_train_the_same_run(tmp_path, text_file, capsys):
    statuses = []
    with at_step(6, lambda: statuses.append(stopped(tmp_path, text_file))):
        train_in(tmp_path, text_file)
    assert statuses == [2] and "another process is training this run already" in capsys.readouterr().err
    assert read_log(tmp_path / "log.csv")["run"].nunique() == 1


def test_a_run_resumed_elsewhere_keeps_its_precision_and_restores_a_lost_log(
    uninterrupted, interrupted, text_file, monkeypatch, capsys
):
    whole, asked = uninterrupted(), []
    choose = lambda name, *_: asked.append(name) or ("bf16" if name == "auto" else name)  # noqa: E731
    monkeypatch.setattr(sys.modules["training.run"], "choose_precision", choose)
    monkeypatch.setattr(sys.modules["training.record"], "processor", lambda device: "abacus")
    (interrupted / "log.csv").unlink()
    train_in(interrupted, text_file, "--resume")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert "this run began with processor" in warning and "goes on with abacus" in warning
    assert asked == ["fp32"]  # so a device check checks the precision that the run goes on in
    assert set(read_log(interrupted / "log.csv")["precision"]) == {"fp32"}
    assert_same(interrupted, whole)


def test_the_same_command_does_not_replace_minutes_of_training(interrupted, text_file, monkeypatch, capsys):
    def refusal() -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["training.record"], "WORTH_KEEPING", 0.0)
            assert stopped(interrupted, text_file) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    before = checkpoint(interrupted).read_bytes()
    printed = refusal()
    assert "stopped at step 7" in printed and "add --resume to go on with it" in printed
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["training.record"], "rung_code", lambda *_: "0badc0de")
        printed = refusal()
    assert "it is of other code, and cannot go on; delete that file" in printed and "--resume" not in printed
    assert checkpoint(interrupted).read_bytes() == before
    train_in(interrupted, text_file)  # a run of seconds is replaced without a question
    assert load_checkpoint(checkpoint(interrupted, finished=True))["step"] == 12


def test_a_finished_model_is_kept_until_the_same_command_has_finished_again(tmp_path, text_file, monkeypatch):
    train_in(tmp_path, text_file)
    before = checkpoint(tmp_path, finished=True).read_bytes()
    train_in(tmp_path, text_file, "--resume")  # this changes nothing
    assert steps_logged(tmp_path) == [0, 4, 8, 12]
    monkeypatch.setattr(sys.modules["training.record"], "WORTH_KEEPING", 0.0)
    stop_at(6, tmp_path, text_file)
    assert checkpoint(tmp_path, finished=True).read_bytes() == before
    assert load_checkpoint(checkpoint(tmp_path))["step"] == 7
    train_in(tmp_path, text_file, "--resume")
    runs = read_log(tmp_path / "log.csv")["run"].unique().tolist()
    assert load_checkpoint(checkpoint(tmp_path, finished=True))["metadata"]["run"] == runs[1] != runs[0]


# What is refused


def refused(folder: Path, text_file: Path, capsys, *flags: str) -> str:
    """The one-line error of a run that is refused with --resume and changes nothing."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert stopped(folder, text_file, "--resume", *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {path: path.read_bytes() for path in before} == before
    return line


OTHERS = {"--dropout 0.5": "dropout 0.2, here 0.5", "--seed 1": "seed 0, here 1", "--corpus other.txt": "corpus "}


@pytest.mark.parametrize("flags", OTHERS)
def test_resuming_another_run_is_refused_with_the_difference(flags, interrupted, text, text_file, monkeypatch, capsys):
    (interrupted / "other.txt").write_text(text[:-1], encoding="utf-8")
    monkeypatch.chdir(interrupted)
    printed = refused(interrupted, text_file, capsys, *flags.split())
    checkpoint(interrupted).rename(re.search(r"there is no checkpoint (\S+\.pt)", printed)[1])  # as a user might
    printed = refused(interrupted, text_file, capsys, *flags.split())
    assert "of another run" in printed and OTHERS[flags] in printed


@pytest.mark.parametrize("code", ["rung_code", "shared_code"])
def test_resuming_with_other_code_is_refused_with_the_difference(code, interrupted, text_file, monkeypatch, capsys):
    began = read_log(interrupted / "log.csv")[code][0]
    monkeypatch.setattr(sys.modules["training.record"], code, lambda *_: "0badc0de")
    printed = refused(interrupted, text_file, capsys)
    assert f"{'shared code' if code == 'shared_code' else 'code of the rung'} {began}, here 0badc0de" in printed


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("code_ran"),)


def test_a_broken_or_malicious_checkpoint_is_refused(interrupted, text_file, monkeypatch, capsys):
    monkeypatch.chdir(interrupted)
    path = checkpoint(interrupted)
    content, whole = load_checkpoint(path), path.read_bytes()
    for odd in ({"metadata": {}}, {"metadata": RunsCode()}, None):
        if odd is None:
            path.write_bytes(whole[: len(whole) // 2])
        else:
            torch.save(content | odd, path)
        assert "not a checkpoint" in refused(interrupted, text_file, capsys), odd
    assert not Path("code_ran").exists()


@pytest.mark.skipif(os.name != "posix", reason="the limit on a file's size is POSIX'")
def test_a_full_disk_keeps_the_last_checkpoint(uninterrupted, tmp_path, text_file, capsys):
    """There is room for rows of the log, but for no checkpoint."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at_step(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))):
            stop_at(9, tmp_path, text_file)
        assert "stopped after step 10 of 12, not saved" in (printed := capsys.readouterr().err)
        assert "WARNING: cannot write the checkpoint" in printed
        assert load_checkpoint(checkpoint(tmp_path))["step"] == 4 and steps_logged(tmp_path) == [0, 4, 8]
        assert stopped(tmp_path, text_file, "--resume") == 2  # trained to the end, but the model is not saved
        printed = capsys.readouterr()
        assert "error: cannot write the checkpoint" in printed.err and "validation loss" in printed.out
        assert "model saved as" not in printed.out and load_checkpoint(checkpoint(tmp_path))["step"] == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train_in(tmp_path, text_file, "--resume")
    assert_same(tmp_path, uninterrupted())
