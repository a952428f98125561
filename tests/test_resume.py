"""Nothing lost: runs that are stopped, killed, out of disk or handed a wrong file, and go on as if nothing had been."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import gpt
from data import Corpus, LossLog, read_log
from helper_scripts.models import load_model
from stages import muon, post_norm, pre_norm
from training import run
from training.checkpoint import load_checkpoint
from training.cli import as_typed, parse

if os.name == "posix":
    import fcntl
    import termios

pytestmark = pytest.mark.usefixtures("usual_signals")

SIZES = ["--n-embd", "12", "--n-layer", "1", "--n-head", "2", "--block-size", "8", "--batch-size", "2"]
# an evaluation every 4 of 12 steps, with dropout, a warm-up and a falling learning rate, all of which have to go on
SETTINGS = [*SIZES, "--steps", "12", "--eval-interval", "4", "--no-without-replacement"]
SETTINGS += ["--sample-length", "5", "--device", "cpu"]
SAME = ["experiment", "seed", "step", "steps", "train_loss", "val_loss", "tokens", "config", "flags", "corpus_sha256"]


def arguments(folder: Path, text_file: Path, *flags: str) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]
    return [*SETTINGS, *places, *flags]


def go(folder: Path, text_file: Path, *flags: str, rung=gpt) -> None:
    run(rung.LanguageModel, rung.Config, arguments(folder, text_file, *flags))


def stopped(folder: Path, text_file: Path, *flags: str, rung=gpt) -> int:
    """The exit status of a run that does not end as it should."""
    with pytest.raises(SystemExit) as stop:
        go(folder, text_file, *flags, rung=rung)
    return stop.value.code


def checkpoint(folder: Path) -> Path:
    (path,) = (folder / "runs").glob("*.pt")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text_file) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    go(folder, text_file)
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    """The same weights to the bit, the same rows, each once, all of one run."""
    here, there = (load_checkpoint(checkpoint(place)) for place in (folder, whole))
    assert here["weights"].keys() == there["weights"].keys()
    assert all(torch.equal(here["weights"][name], there["weights"][name]) for name in there["weights"])
    rows, wanted = (read_log(place / "log.csv") for place in (folder, whole))
    assert rows[SAME].to_dict("records") == wanted[SAME].to_dict("records")
    assert rows["run"].nunique() == 1
    assert rows["seconds"].is_monotonic_increasing


@pytest.fixture
def at_step(monkeypatch):
    """Has something done as the batch of one step is drawn, once training has begun: at_step(7, action)."""

    fired = []

    def arrange(step: int, action) -> None:
        measure_pace, batch, timing, armed = sys.modules["training.run"].measure_pace, Corpus.batch, [], []

        def measured(*args, **kwargs):  # draws batches as well
            timing.append(True)
            result = measure_pace(*args, **kwargs)
            timing.clear()
            return result

        def interrupted(corpus, seed, number, *sizes):
            if number == step and not timing:
                armed.clear()
                action()
            return batch(corpus, seed, number, *sizes)

        armed.append(True)
        fired.append(armed)
        monkeypatch.setattr(sys.modules["training.run"], "measure_pace", measured)
        monkeypatch.setattr(Corpus, "batch", interrupted)

    yield arrange
    assert not any(fired)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_the_run_and_tells_how_to_go_on(name, whole, tmp_path, text_file, at_step, monkeypatch, capfd):
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    at_step(6, lambda: signal.raise_signal(number))
    assert stopped(tmp_path, text_file) == 128 + number
    assert signal.getsignal(number) is handler
    assert load_checkpoint(checkpoint(tmp_path))["step"] == 7  # the step that it came in was finished
    assert read_log(tmp_path / "log.csv")["step"].tolist() == [0, 4]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "to go on" in line]
    command = shlex.split(line.partition("to go on: ")[2])
    assert "stopped after step 7 of 12, saved" in line
    assert command[0] == "python" and (Path.cwd() / command[1]).resolve() == ROOT / "gpt.py"
    monkeypatch.undo()
    run(gpt.LanguageModel, gpt.Config, command[2:])
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(("name", "saved"), [("SIGINT", 4), ("SIGTERM", 7), ("SIGHUP", 7)])
def test_a_signal_that_comes_twice(name, saved, tmp_path, text_file, at_step):
    """A second Ctrl-C is impatience. SIGHUP comes from a terminal that is closed and from its shell: no reason not to
    save the run."""
    if not hasattr(signal, name):
        pytest.skip(f"there is no {name} here")
    number = getattr(signal, name)

    def twice():
        signal.raise_signal(number)
        signal.raise_signal(number)

    at_step(6, twice)
    assert stopped(tmp_path, text_file) == 128 + number
    assert load_checkpoint(checkpoint(tmp_path))["step"] == saved


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signal that one process may send to another")
def test_a_terminal_that_is_closed(tmp_path, text_file):
    """A run in a terminal of its own, which goes away: SIGHUP, and nowhere left to say anything."""
    long = ["--steps", "1000000", "--eval-interval", "1"]
    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "gpt.py", *arguments(tmp_path, text_file), *long],
        cwd=ROOT,
        env=threads(),
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(its, termios.TIOCSCTTY, 0)),
        **dict.fromkeys(("stdin", "stdout", "stderr"), its),
    )
    os.close(its)
    with process, os.fdopen(ours, encoding="utf-8") as terminal:
        for line in terminal:
            if re.search(r"step +[1-9]", line):  # trained for a step, and evaluated
                break
    assert process.returncode in (128 + signal.SIGHUP, 120)  # 120: Python could not flush what it wanted to say
    assert load_checkpoint(checkpoint(tmp_path))["step"] > 0


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signal that one process may send to another")
def test_a_reader_that_has_gone(tmp_path, text_file):
    """`python gpt.py | head -5`, then Ctrl-C: the run goes on when nobody reads, and is saved all the same."""
    long = ["--steps", "1000000", "--eval-interval", "1"]
    command = [sys.executable, "gpt.py", *arguments(tmp_path, text_file), *long]
    with subprocess.Popen(command, cwd=ROOT, env=threads(), stdout=-1, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            if b"step " in line and b"train " in line:
                break
        process.stdout.close()
        while (tmp_path / "log.csv").read_bytes().count(b"\n") < 6:  # it goes on
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.returncode in (130, 120)  # 120: Python could not flush what it wanted to say
    last = load_checkpoint(checkpoint(tmp_path))
    assert last["step"] >= 4 and last["step"] == read_log(tmp_path / "log.csv")["step"].max()


@given(
    recipe=st.sampled_from(["ours", "lecture", "short"]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(0, 9999),
            "batch_size": st.integers(1, 99),
            "learning_rate": st.floats(1e-9, 1e9),
            "decay": st.booleans(),
            "dropout": st.floats(0, 0.99),
            "prompt": st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
            "loss_csv": st.sampled_from([Path("a b.csv"), Path("-x.csv"), Path("it's.csv")]),
            "resume": st.booleans(),
        },
    ),
)
def test_the_advice_means_the_settings(recipe, changes):
    config = dataclasses.replace(gpt.Config(**gpt.Config.RECIPES.get(recipe, {}), recipe=recipe), **changes)
    words = shlex.split(as_typed(ROOT / "gpt.py", config))
    assert parse(gpt.Config, "", words[2:]) == config


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder that somebody is in")
def test_a_folder_that_is_gone_leaves_the_advice_whole(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    words = shlex.split(as_typed(ROOT / "gpt.py", gpt.Config(steps=7)))
    assert words == ["python", str(ROOT / "gpt.py"), "--steps", "7"]


def threads() -> dict[str, str]:
    """Children that sum as this process does: bits depend on the number of threads."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "utf-8"}


KILLED = """
import os, signal, sys
import torch
import gpt
from data import Corpus, LossLog
from training import run

def die():
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

def when(owner, name, due, before):
    was = getattr(owner, name)
    def dying(*args, **kwargs):
        fatal = due(*args, **kwargs)
        if fatal and before:
            die()
        result = was(*args, **kwargs)
        if fatal:
            die()
        return result
    setattr(owner, name, dying)

def of(step):
    return lambda content, file: content["step"] == step

{kill}
run(gpt.LanguageModel, gpt.Config, sys.argv[1:])
"""
KILLS = {
    "before the first row": 'when(LossLog, "append", lambda log, row: row["step"] == 0, before=True)',
    "after the first row": 'when(LossLog, "append", lambda log, row: row["step"] == 0, before=False)',
    "before a checkpoint": 'when(torch, "save", of(8), before=True)',
    "while a checkpoint is written": 'when(torch, "save", of(8), before=False)',
    "between a checkpoint and its row": 'when(LossLog, "append", lambda log, row: row["step"] == 8, before=True)',
    "between two steps": 'when(LossLog, "append", lambda log, row: row["step"] == 8, before=False)',
    "before the last checkpoint": 'when(torch, "save", of(12), before=True)',
    "after the last row": 'when(LossLog, "append", lambda log, row: row["step"] == 12, before=False)',
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS.keys())
def test_a_killed_run_ends_as_if_nothing_had_been(kill, whole, tmp_path, text_file):
    code = KILLED.replace("{kill}", kill)
    killed = subprocess.run(
        [sys.executable, "-c", code, *arguments(tmp_path, text_file)], env=threads(), capture_output=True
    )
    assert killed.returncode not in (0, 1, 2), killed.stderr
    go(tmp_path, text_file, "--resume")
    assert_same(tmp_path, whole)
    assert [path.suffix for path in (tmp_path / "runs").iterdir()] == [".pt"]  # no half-written file is left


def test_two_processes_do_not_train_one_run(tmp_path, text_file, at_step, capsys):
    at_step(6, lambda: statuses.extend(stopped(tmp_path, text_file) for _ in range(2)))  # the same, meanwhile
    statuses = []
    go(tmp_path, text_file)
    assert statuses == [2, 2]
    assert "another process is training this very run" in capsys.readouterr().err
    assert read_log(tmp_path / "log.csv")["run"].nunique() == 1


def test_a_log_that_was_moved_away_has_all_rows_again(whole, tmp_path, text_file, at_step, monkeypatch):
    at_step(10, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file) == 130
    monkeypatch.undo()
    (tmp_path / "log.csv").unlink()
    go(tmp_path, text_file, "--resume")
    assert_same(tmp_path, whole)


def test_a_run_keeps_its_precision(interrupted, text_file, monkeypatch, capsys):
    """Which of the two is faster is a measurement, and may come out differently the next day."""
    monkeypatch.setattr(sys.modules["training.run"], "choose_precision", lambda *args: "bf16")
    go(interrupted, text_file, "--resume")
    assert set(read_log(interrupted / "log.csv")["precision"]) == {"fp32"}
    assert "WARNING" not in capsys.readouterr().err


def test_what_may_differ_is_told(interrupted, text_file, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["training.record"], "commit", lambda: "0badc0de")
    go(interrupted, text_file, "--resume", "--precision", "bf16")
    said = capsys.readouterr().err
    assert "and goes on with 0badc0de" in said and "precision fp32, and goes on with bf16" in said
    commits = read_log(interrupted / "log.csv").set_index("step")["commit"]
    began = commits[0].rstrip("+")
    assert commits[12] == commits[8] == began + "+" != "0badc0de"  # neither code alone has trained it


def test_the_time_that_is_left_is_told_and_no_other_run_advised(interrupted, text_file, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["training.run"], "LONG", 0)
    go(interrupted, text_file, "--resume")
    said = capsys.readouterr().out
    assert "this will take about 0 minutes more" in said and "--minutes" not in said


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path, text_file, capsys):
    go(tmp_path, text_file)
    before = checkpoint(tmp_path).read_bytes(), (tmp_path / "log.csv").read_bytes()
    go(tmp_path, text_file, "--resume")
    assert (checkpoint(tmp_path).read_bytes(), (tmp_path / "log.csv").read_bytes()) == before
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_run_stopped_again_and_again(whole, tmp_path, text_file, at_step, monkeypatch):
    for step in (0, 1, 5, 10):
        at_step(step, lambda: signal.raise_signal(signal.SIGINT))
        assert stopped(tmp_path, text_file, *(["--resume"] if step else [])) == 130
        monkeypatch.undo()
    go(tmp_path, text_file, "--resume")
    assert_same(tmp_path, whole)


def test_hours_of_training_are_not_replaced_unasked(tmp_path, text_file, at_step, monkeypatch, capsys):
    at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file) == 130
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules["training.record"], "WORTH_KEEPING", 0.0)
    before = checkpoint(tmp_path).read_bytes()
    capsys.readouterr()
    assert stopped(tmp_path, text_file) == 2
    said = capsys.readouterr().err
    assert "stopped at step 7" in said and "--resume" in said and said.count("\n") == 1
    assert checkpoint(tmp_path).read_bytes() == before
    monkeypatch.undo()
    go(tmp_path, text_file)  # seconds are not worth asking
    assert load_checkpoint(checkpoint(tmp_path))["step"] == 12


def test_the_model_of_hours_is_kept_as_its_run_starts_anew(tmp_path, text_file, at_step, monkeypatch, capsys):
    go(tmp_path, text_file)
    trained = checkpoint(tmp_path)
    before = trained.read_bytes()
    monkeypatch.setattr(sys.modules["training.record"], "WORTH_KEEPING", 0.0)
    at_step(0, lambda: signal.raise_signal(signal.SIGINT))
    capsys.readouterr()
    assert stopped(tmp_path, text_file) == 130
    kept = trained.with_suffix(".before1.pt")
    assert kept.name in capsys.readouterr().out
    assert kept.read_bytes() == before
    assert load_checkpoint(trained)["step"] < 12
    assert load_model(kept).last.step == 12  # to sample from

    trained.write_bytes(before)  # finished, and started anew, once more
    at_step(0, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file) == 130
    assert kept.read_bytes() == before and trained.with_suffix(".before2.pt").read_bytes() == before


def test_what_may_be_another_versions_checkpoint_is_kept(tmp_path, text_file, capsys):
    go(tmp_path, text_file)
    trained = checkpoint(tmp_path)
    trained.write_bytes(b"of another version")
    capsys.readouterr()
    go(tmp_path, text_file)
    kept = trained.with_suffix(".before1.pt")
    assert str(kept) in capsys.readouterr().out
    assert kept.read_bytes() == b"of another version" and load_checkpoint(trained)["step"] == 12


def test_seconds_of_training_leave_nothing_behind(tmp_path, text_file):
    go(tmp_path, text_file)
    go(tmp_path, text_file)
    checkpoint(tmp_path)  # the only one


# What is refused


def refused(folder: Path, text_file: Path, capsys, *flags: str, rung=gpt) -> str:
    """What a run that is to resume says as it refuses, in one line, having changed nothing."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert stopped(folder, text_file, "--resume", *flags, rung=rung) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
    return said.err


@pytest.fixture
def interrupted(tmp_path, text_file, at_step, monkeypatch) -> Path:
    """The folder of a run of gpt.py stopped after 7 of 12 steps."""
    at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file) == 130
    monkeypatch.undo()
    return tmp_path


def test_a_run_with_two_optimizers_goes_on_with_both(tmp_path, text_file, at_step, monkeypatch):
    go(tmp_path / "whole", text_file, rung=muon)
    at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file, rung=muon) == 130
    monkeypatch.undo()
    assert [len(moments) for moments in load_checkpoint(checkpoint(tmp_path))["optimizers"]] == [4, 7]
    go(tmp_path, text_file, "--resume", rung=muon)
    assert_same(tmp_path, tmp_path / "whole")


def test_a_checkpoint_from_when_there_was_one_optimizer_goes_on(interrupted, whole, text_file):
    content = load_checkpoint(checkpoint(interrupted))
    (content["optimizer"],) = content.pop("optimizers")
    torch.save(content, checkpoint(interrupted))
    go(interrupted, text_file, "--resume")
    assert_same(interrupted, whole)


def test_a_checkpoint_from_before_a_setting_was_there_goes_on(interrupted, whole, text_file):
    content = load_checkpoint(checkpoint(interrupted))
    assert content["config"].pop("without_replacement") is False
    torch.save(content, checkpoint(interrupted))
    go(interrupted, text_file, "--resume")
    assert_same(interrupted, whole)


def test_a_run_without_replacement_goes_on_in_the_middle_of_a_reading(tmp_path, text_file, at_step, monkeypatch):
    go(tmp_path / "whole", text_file, "--without-replacement")
    at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file, "--without-replacement") == 130
    monkeypatch.undo()
    go(tmp_path, text_file, "--without-replacement", "--resume")
    assert_same(tmp_path, tmp_path / "whole")


def put_in_place(folder: Path, said: str) -> None:
    """Rename the checkpoint to what was looked for, as a user might."""
    checkpoint(folder).rename(re.search(r"no checkpoint (\S+\.pt)", said)[1])


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--dropout", "0.5"], "dropout 0.2, here 0.5"),
        (["--steps", "13"], "steps 12, here 13"),
        (["--n-embd", "24"], "n-embd 12, here 24"),
        (["--seed", "1"], "seed 0, here 1"),
    ],
)
def test_another_configuration_is_refused_and_named(flags, difference, interrupted, text_file, capsys):
    said = refused(interrupted, text_file, capsys, *flags)
    assert difference in said and "there is no checkpoint" in said
    put_in_place(interrupted, said)
    said = refused(interrupted, text_file, capsys, *flags)
    assert difference in said and "of another run" in said


def test_another_rung_is_refused_and_named(interrupted, text_file, capsys, monkeypatch, tmp_path):
    for rung in (pre_norm, post_norm):
        said = refused(interrupted, text_file, capsys, rung=rung)
        put_in_place(interrupted, said)
        said = refused(interrupted, text_file, capsys, rung=rung)
        assert f"rung gpt, here {rung.__name__.rpartition('.')[2]}" in said


def test_another_corpus_and_its_characters_are_refused_and_named(interrupted, text_file, text, tmp_path, capsys):
    other = tmp_path / "other.txt"
    for changed, words in ((text[:-1], "corpus "), (text + "Ω", "another set of characters")):
        other.write_text(changed, encoding="utf-8")
        put_in_place(interrupted, refused(interrupted, other, capsys))
        assert words in refused(interrupted, other, capsys)


def test_nothing_to_resume_is_said(tmp_path, text_file, capsys):
    assert "there is no checkpoint" in refused(tmp_path, text_file, capsys)
    assert "--steps" in refused(tmp_path, text_file, capsys, "--minutes", "1")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("went_off"),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>Please log in</html>"),
        lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol=2)),
        lambda path: torch.save({"weights": Bomb()}, path),
        lambda path: torch.save(load_checkpoint(path) | {"facts": Bomb()}, path),
        lambda path: torch.save([1, 2, 3], path),
        lambda path: torch.save({"weights": {}, "config": {}, "facts": {}}, path),  # of an earlier version
    ],
    ids=["half", "empty", "page", "pickle", "bomb", "hidden bomb", "list", "old"],
)
def test_a_broken_or_hostile_checkpoint_is_refused(spoil, interrupted, text_file, capsys, monkeypatch):
    monkeypatch.chdir(interrupted)
    spoil(checkpoint(interrupted))
    said = refused(interrupted, text_file, capsys)
    assert str(checkpoint(interrupted)) in said
    assert not Path("went_off").exists()


ODD = {
    "weights": [{}, 3, {"token_embedding.weight": torch.zeros(1, 1)}, {"token_embedding.weight": 3}],
    "optimizers": [None, 3, [], [3], [{}], [{}, {}], [{0: 3}], [{number: {} for number in range(30)}]],
    "step": ["seven", -5, 99, 7.5, None, True, 12],
    "seconds": ["long", float("nan"), -1.0, None],
    "evaluations": [3, [3], [{"step": 1}], [dict.fromkeys(("step", "train_loss", "val_loss", "seconds"), "x")]],
    "config": [None, 3],
    "facts": [None, 3, {}],
}
ODD_FACTS = {
    "run": ["two\nlines", ["a"], None],
    "commit": [3],
    "threads": ["two"],
    "experiment": [None],
    "alphabet": [[]],
}
CHANGES = [{key: value} for key, values in ODD.items() for value in values]
CHANGES += [{"facts": {key: value}} for key, values in ODD_FACTS.items() for value in values]


@pytest.mark.parametrize("change", CHANGES, ids=[f"{change!r:.40}" for change in CHANGES])
def test_a_checkpoint_with_something_odd_in_it_is_refused(change, interrupted, text_file, capsys):
    content = load_checkpoint(checkpoint(interrupted))
    facts = change.get("facts")
    if facts:
        change = {"facts": content["facts"] | facts if isinstance(facts, dict) else facts}
    torch.save(content | change, checkpoint(interrupted))
    assert str(checkpoint(interrupted)) in refused(interrupted, text_file, capsys)


def test_moments_of_another_shape_are_refused(interrupted, text_file, capsys):
    content = load_checkpoint(checkpoint(interrupted))
    content["optimizers"][0][0]["exp_avg"] = torch.zeros(1)  # handed to the fused optimizer, it would end the process
    torch.save(content, checkpoint(interrupted))
    assert "does not fit" in refused(interrupted, text_file, capsys)


# Faults


FULL = """
import resource, sys
import gpt
from training import run
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), hard))
run(gpt.LanguageModel, gpt.Config, sys.argv[2:])
"""


@pytest.mark.skipif(os.name != "posix", reason="the limit on a file's size is POSIX'")
def test_a_full_disk_costs_no_more_than_a_checkpoint(whole, tmp_path, text_file):
    """Room for weights alone, as before the first step and after the last, but not for the optimizer's state."""
    room = int(1.5 * checkpoint(whole).stat().st_size)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(room), *arguments(tmp_path, text_file)],
        env=threads(),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 2 and all("cannot write the checkpoint" in line for line in warnings)  # after 4 and 8
    assert_same(tmp_path, whole)
    assert [path.suffix for path in (tmp_path / "runs").iterdir()] == [".pt"]


def test_what_could_not_be_saved_leaves_the_checkpoint_before(whole, tmp_path, text_file, monkeypatch, at_step, capsys):
    save = torch.save

    def full(content, file):
        save(content, file)
        if content["step"] > 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    at_step(9, lambda: signal.raise_signal(signal.SIGINT))
    assert stopped(tmp_path, text_file) == 130
    said = capsys.readouterr().err
    assert "No space left on device" in said and "stopped after step 10 of 12, not saved" in said
    assert load_checkpoint(checkpoint(tmp_path))["step"] == 4
    assert read_log(tmp_path / "log.csv")["step"].tolist() == [0, 4, 8]
    monkeypatch.undo()
    go(tmp_path, text_file, "--resume")  # again from 4, so 8 is evaluated a second time, and not logged twice
    assert_same(tmp_path, whole)


def test_a_model_that_cannot_be_saved_at_the_end_is_an_error(tmp_path, text_file, monkeypatch, capsys):
    def full(content, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert stopped(tmp_path, text_file) == 2
    said = capsys.readouterr()
    assert "error: cannot write the checkpoint" in said.err and "validation loss" in said.out


def test_a_log_that_fills_up_stops_the_run_and_loses_no_row(whole, tmp_path, text_file, monkeypatch, capsys):
    append = LossLog.append

    def full(log, row):
        with monkeypatch.context() as patch:
            if row["step"] == 8:
                patch.setattr("data.loss_log.os.fsync", no_space)
            append(log, row)

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LossLog, "append", full)
    assert stopped(tmp_path, text_file) == 2
    assert "cannot write the loss log" in capsys.readouterr().err
    monkeypatch.undo()
    go(tmp_path, text_file, "--resume")
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("name", ["emptied", "missing"])
def test_a_log_without_rows_has_all_of_them_again(name, whole, interrupted, text_file):
    (interrupted / "log.csv").write_text("", encoding="utf-8")
    if name == "missing":
        (interrupted / "log.csv").unlink()
    go(interrupted, text_file, "--resume")
    assert_same(interrupted, whole)


@pytest.mark.parametrize("name", ["the log", "the folder"])
def test_what_cannot_be_written_is_said_before_training(name, tmp_path, text_file, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    flag = "--loss-csv" if name == "the log" else "--runs-dir"
    assert stopped(tmp_path, text_file, flag, str(tmp_path / "file" / "within")) == 2
    said = capsys.readouterr()
    assert flag in said.err and "step" not in said.out


# Numbers gone wrong


class Spoiled(gpt.LanguageModel):
    """A model whose logits are not finite from the step on that is in `bad`."""

    bad = 10**9
    calls = 0

    def forward(self, idx):
        logits = super().forward(idx)
        if self.training:
            type(self).calls += 1
        return logits * float("nan") if self.training and self.calls > self.bad else logits


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path, text_file, monkeypatch, capsys):
    pace = sys.modules["training.run"].measure_pace

    def measured(*args, **kwargs):
        result = pace(*args, **kwargs)
        monkeypatch.setattr(Spoiled, "calls", 0)
        monkeypatch.setattr(Spoiled, "bad", 6)
        return result

    monkeypatch.setattr(sys.modules["training.run"], "measure_pace", measured)
    monkeypatch.setattr(Spoiled, "bad", 10**9)
    with pytest.raises(SystemExit) as stop:
        run(Spoiled, gpt.Config, arguments(tmp_path, text_file))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "at step 7" in line and "--learning-rate" in line
    content = load_checkpoint(checkpoint(tmp_path))
    assert content["step"] == 4
    assert all(weights.isfinite().all() for weights in content["weights"].values())
    assert read_log(tmp_path / "log.csv")["step"].tolist() == [0, 4]
