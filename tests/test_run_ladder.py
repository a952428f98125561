"""Many runs at once: what is trained, what is not trained again, and what becomes of the others when one fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import MODULES, ROOT

import bigram
from data import load_corpus, read_log
from helper_scripts import run_ladder, workers
from helper_scripts.models import config_of, rung_module
from helper_scripts.results import RUNGS
from helper_scripts.workers import Result, Run, train_all
from training import provenance, run
from training.checkpoint import load_checkpoint

COMMAND = [sys.executable, str(ROOT / "helper_scripts" / "run_ladder.py")]


def places(folder) -> list[str]:
    """Flags that keep all that is written in `folder`."""
    flags = ["--device", "cpu", "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]
    return [*flags, "--out", str(folder / "curves.svg")]


def ladder(folder, *args: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command = [*COMMAND, *args, *places(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize(("kind", "runs"), [("cpu", os.cpu_count()), ("cuda", 1), ("mps", 1)])
def test_runs_share_a_processor_by_its_cores_and_a_gpu_not_at_all(kind, runs, monkeypatch):
    monkeypatch.setattr(run_ladder, "choose_device", lambda name: torch.device(kind))
    assert run_ladder._at_a_time("auto") == runs


def test_the_ladder_command_trains_what_it_is_told(tmp_path, text_file):
    words = ["bigram", "residual", "residual --n-layer 1", "--seeds", "2", "--steps", "4", "--corpus", str(text_file)]
    done = ladder(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    log = read_log(tmp_path / "log.csv")
    final = log[log["step"] == log["steps"]].sort_values(["experiment", "flags", "seed"])
    assert list(zip(final["experiment"], final["flags"], final["seed"], strict=True)) == [
        (rung, flags, seed)
        for rung, flags in (("bigram", ""), ("residual", ""), ("residual", " --n-layer 1"))
        for flags in [f"--steps 4{flags}"]
        for seed in (0, 1)
    ]
    assert "| `residual --steps 4 --n-layer 1` |" in done.stdout
    assert (tmp_path / "curves.svg").read_text(encoding="utf-8").count("<path") > 20
    assert "6 of 6 runs, " in done.stderr and "100%" in done.stderr
    # a rung's own command, alone, gives the same losses
    alone = ["--steps", "4", "--seed", "1", "--corpus", str(text_file), *places(tmp_path / "alone")[:-2]]
    run(MODULES[4].LanguageModel, MODULES[4].Config, alone)
    theirs = log[(log["experiment"] == "residual") & (log["flags"] == "--steps 4") & (log["seed"] == 1)]
    assert read_log(tmp_path / "alone" / "log.csv")["val_loss"].tolist() == theirs["val_loss"].tolist()


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be " * 5, encoding="utf-8")  # fits no context of 256
    done = ladder(tmp_path, "gpt", "bigram", "--steps", "2", "--corpus", "text.txt")
    assert done.returncode == 2
    assert "gpt --steps 2, seed 0 failed: the corpus text.txt is too short" in done.stderr.splitlines()[-1]
    assert "| `bigram --steps 2` |" in done.stdout


def tiny(folder, text_file, **settings):
    there = {"corpus": str(text_file), "device": "cpu", "loss_csv": folder / "log.csv", "runs_dir": folder / "runs"}
    return config_of("bigram", sample_length=0, **there, **settings)


def test_a_process_that_dies_takes_one_run_with_it(tmp_path, text_file):
    results, shares = {}, {}

    def progress(run, share):
        shares.setdefault(run.config.seed, []).append(share)
        if run.config.seed == 1 and share > 0:
            (process,) = multiprocessing.active_children()
            process.kill()

    runs = [Run("bigram", tiny(tmp_path, text_file, seed=s, steps=6000, eval_interval=3000)) for s in range(3)]
    train_all(runs, 1, progress, lambda run, result: results.update({run.config.seed: result}))
    assert "its process was ended from outside" in results[1].error
    assert results[0].error == results[2].error == ""
    assert shares[0] == shares[2] == [0, 0.5, 1] and shares[1] == [0, 0.5]
    final = read_log(tmp_path / "log.csv").groupby("run", sort=False).last()
    assert final["val_loss"].iloc[[0, 2]].tolist() == pytest.approx([results[s].val_loss for s in (0, 2)], abs=1e-6)
    assert multiprocessing.active_children() == []


def test_a_worker_let_go_of_the_moment_it_has_told_its_result_ends_in_peace(tmp_path, text_file, monkeypatch):
    """Else a signal would meet it on its way out, and what it was cleaning up then stays, with a warning of that."""
    handlers, told = {}, []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)  # this process keeps its own
    monkeypatch.setattr(signal, "raise_signal", told.append)
    its_lifeline, lifeline = multiprocessing.Pipe(duplex=False)
    runs = [Run("bigram", tiny(tmp_path, text_file, steps=2))]

    class Pipe:
        def recv(self):
            if not runs:
                raise EOFError
            return runs.pop()

        def send(self, news):
            if isinstance(news, Result):
                told.append(news)
                lifeline.close()
                for thread in threading.enumerate():
                    if thread.name == "lifeline":  # it has all the time to notice
                        thread.join()

    workers._work(Pipe(), its_lifeline, threads=None)
    assert [type(what) for what in told] == [Result] and told[0].error == ""
    assert signal.SIGTERM in handlers


@pytest.mark.skipif(os.name == "nt", reason="a process there cannot be sent Ctrl-C alone")
@pytest.mark.parametrize("way", ["Ctrl-C", "kill"])
def test_what_is_stopped_is_saved_and_gone_on_with(way, tmp_path, text_file, usual_signals):
    """Ctrl-C reaches every process of a terminal, a kill the first alone, which passes nothing on."""
    words = ["bigram", "--seeds", "2", "--jobs", "2", "--steps", "3000000", "--corpus", str(text_file)]
    log, both = tmp_path / "log.csv", [*COMMAND, *words, *places(tmp_path)]
    with subprocess.Popen(both, stdout=-1, stderr=-1, start_new_session=True) as process:
        try:
            while not log.exists() or len({line.partition(b",")[0] for line in log.read_bytes().splitlines()}) < 3:
                assert process.poll() is None
                time.sleep(0.1)
            if way == "Ctrl-C":
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.kill()
            _, said = process.communicate()
        finally:
            process.kill()
    assert process.returncode == (130 if way == "Ctrl-C" else -signal.SIGKILL) and b"Traceback" not in said

    def saved() -> list[dict]:
        return [load_checkpoint(path) for path in sorted((tmp_path / "runs").glob("*.pt"))]

    while way == "kill" and any((tmp_path / "runs").glob("*.lock")):  # until the others have noticed, and are done
        time.sleep(0.1)
    assert [content["step"] > content["evaluations"][-1]["step"] for content in saved()] == [True, True]
    if way == "Ctrl-C":
        return
    # the same command goes on; from near the end, or it would take too long
    for path in (tmp_path / "runs").glob("*.pt"):
        content = load_checkpoint(path)
        content["step"] = 3_000_000 - 2
        for moments in content["optimizers"][0].values():
            moments["step"].fill_(content["step"])
        torch.save(content, path)
    done = subprocess.run(both, capture_output=True, encoding="utf-8")
    assert "2 of 2 runs were stopped before; going on with them" in done.stdout, done.stderr
    assert [content["optimizers"] for content in saved()] == [None, None]
    assert sorted(read_log(log).groupby("run")["step"].max()) == [3_000_000] * 2


# What is in the log already


@pytest.fixture
def logged(tmp_path, text_file):
    """A log with a run of bigram, and whether the command would train it again under some circumstances."""
    flags = ["--steps", "2", "--sample-length", "0", "--corpus", str(text_file), *places(tmp_path)[:-2]]
    run(bigram.LanguageModel, bigram.Config, flags)
    rows, corpus = read_log(tmp_path / "log.csv"), load_corpus(str(text_file))

    def trained_again(rows=rows, corpus=corpus, again=False, **settings) -> bool:
        options = run_ladder.Options(again=again, device="cpu")
        config = tiny(tmp_path, text_file, **{"steps": 2, **settings})
        return bool(run_ladder.left_to_do([("bigram", config)], rows, corpus, options))

    return rows, corpus, trained_again


def test_a_run_that_the_log_has_is_not_trained_again(logged, monkeypatch):
    rows, corpus, trained_again = logged
    monkeypatch.setattr(run_ladder, "unchanged_since", lambda commit, *code: commit == "aaaa")
    rows = rows.assign(commit="aaaa")
    assert not trained_again(rows)
    assert not trained_again(rows, eval_interval=1)  # which changes nothing about the result
    assert trained_again(rows, again=True)
    assert trained_again(rows, seed=1)
    assert trained_again(rows, steps=3)
    assert trained_again(rows, learning_rate=1.0)
    assert trained_again(rows, corpus=replace(corpus, sha256="f" * 64))
    assert trained_again(rows.assign(commit="bbbb"))
    assert trained_again(rows.assign(torch="2.6.0"))
    assert trained_again(rows.assign(device="cuda"))
    assert trained_again(rows, precision="bf16") and not trained_again(rows, precision="fp32")
    assert trained_again(rows.assign(steps=9))  # did not finish
    assert trained_again(None)


def test_code_is_unchanged_only_if_git_says_so(tmp_path, monkeypatch):
    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True, encoding="utf-8")

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    file, folder = tmp_path / "rung.py", tmp_path / "training"
    folder.mkdir()
    (folder / "loop.py").write_text("a", encoding="utf-8")
    file.write_text("a", encoding="utf-8")
    assert not provenance.unchanged_since(provenance.commit(), file)  # no repository
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    first = provenance.commit()
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "two")
    assert provenance.commit() != first
    assert provenance.unchanged_since(first, file, folder)
    (folder / "new.py").write_text("b", encoding="utf-8")
    assert provenance.commit().endswith("+")
    assert not provenance.unchanged_since(first, file, folder)
    assert provenance.unchanged_since(first, file)
    file.write_text("b", encoding="utf-8")
    assert not provenance.unchanged_since(first, file)
    assert not provenance.unchanged_since(first + "+", file) and not provenance.unchanged_since("deadbeef", file)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bigrum"], "there is no rung bigrum"),
        (["residual", "bigram --n-head 4"], "bigram --n-head 4: "),
        (["bigram --seed 3"], "bigram --seed 3: --seed cannot be one rung's alone"),
        ([""], "there is no rung"),
        (["bigram", "--seeds"], "there is nothing to train"),
        (["bigram", "--seeds", "0"], "there is nothing to train"),
        (["bigram", "--jobs", "-1"], "--jobs is -1"),
        (
            ["gpt", "bigram", "--budget", "laptop"],
            "bigram is not trained at the laptop budget; that is for gpt, rotary",
        ),
        (["bigram", "--out", "x.xyz"], "does not end in a kind of picture"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(args, words, tmp_path, monkeypatch, capsys):
    out = [] if "--out" in args else places(tmp_path)[-2:]
    monkeypatch.setattr(sys, "argv", ["run_ladder.py", *args, *places(tmp_path)[:-2], *out])
    with pytest.raises(SystemExit) as stop:
        run_ladder.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_budget_has_its_rungs_and_their_settings():
    own, short, laptop = (
        dict(run_ladder.all_configs(run_ladder.Options(budget=budget))) for budget in ("own", "short", "laptop")
    )
    assert own.keys() | laptop.keys() == set(RUNGS) and own.keys() & laptop.keys() == set()
    budgeted = {rung for rung in RUNGS if hasattr(rung_module(rung).Config, "RECIPES")}
    assert short.keys() == laptop.keys() == budgeted >= {"gpt", "rotary", "modern"}
    assert {config.block_size for config in own.values()} == {8}
    assert {(config.n_embd, config.steps) for config in short.values()} == {(384, 500)}
    assert {(config.n_embd, config.steps) for config in laptop.values()} == {(128, 1000)}
    ((_, one),) = run_ladder.all_configs(run_ladder.Options(("rotary --n-layer 2 --steps 7",), budget="laptop"))
    assert (one.n_embd, one.n_layer, one.steps) == (128, 2, 7)  # what is typed goes over it


def test_seeds_are_a_number_or_a_list():
    def seeds(*numbers):
        return [config.seed for _, config in run_ladder.all_configs(run_ladder.Options(("bigram",), numbers))]

    assert seeds(3) == [0, 1, 2]
    assert seeds(7, 3, 7) == [7, 3]
