"""Several runs at a time: what is trained, what is skipped, and what happens to the others when one fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from filelock import FileLock

import bigram
from data import load_corpus, read_log
from helper_scripts import run_ladder
from helper_scripts.models import RUNGS, config_of, rung_module
from helper_scripts.workers import Run, _work, train_all
from training import ScaledConfig, run
from training.checkpoint import load_checkpoint


def places(folder) -> list[str]:
    """Flags for runs on the CPU that write all their files to `folder`."""
    return ["--device", "cpu", "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]


def test_the_command_trains_the_named_rungs_and_a_failure_stops_no_other_run(tmp_path, text_file, monkeypatch, capsys):
    def edited(rung):  # the file of a rung has a syntax error by now
        return rung_module(rung) if rung != "post_norm" else compile("import", "post_norm.py", "exec")

    monkeypatch.setattr(run_ladder, "rung_module", edited)
    words = ["bigram", "post_norm", "residual --n-layer 1", "bigram --block-size 999", "--seeds", "2", "--steps", "4"]
    words += ["--corpus", str(text_file), *places(tmp_path), "--out", str(tmp_path / "curves.svg")]
    monkeypatch.setattr(sys, "argv", ["run_ladder.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_ladder.main()
    printed = capsys.readouterr()
    assert stop.value.code == 2
    error = printed.err.splitlines()[-1]
    assert "post_norm failed: SyntaxError" in error
    for seed in (0, 1):
        assert f"bigram --steps 4 --block-size 999, seed {seed} failed: the corpus words.txt (" in error
    log = read_log(tmp_path / "log.csv")
    final = log[log["step"] == log["steps"]].sort_values(["rung", "flags", "seed"])
    there = [("bigram", "--steps 4"), ("residual", "--steps 4 --n-layer 1")]
    assert list(zip(final["rung"], final["flags"], final["seed"], strict=True)) == [
        (*each, seed) for each in there for seed in (0, 1)
    ]
    assert "| `residual --steps 4 --n-layer 1` |" in printed.out
    assert (tmp_path / "curves.svg").read_text(encoding="utf-8").count("<path") > 20
    assert "6 of 6 runs, " in printed.err and "100%" in printed.err
    # a rung's own command, alone, gives the same losses
    alone = ["--steps", "4", "--seed", "1", "--corpus", str(text_file), *places(tmp_path / "alone")]
    run(bigram.LanguageModel, bigram.Config, alone)
    theirs = log[(log["rung"] == "bigram") & (log["seed"] == 1)]
    assert read_log(tmp_path / "alone" / "log.csv")["val_loss"].tolist() == theirs["val_loss"].tolist()


def tiny_config(folder, text_file, **settings):
    there = {"corpus": str(text_file), "device": "cpu", "loss_csv": folder / "log.csv", "runs_dir": folder / "runs"}
    return config_of("bigram", sample_length=0, **there, **settings)


def test_a_run_that_fails_or_is_killed_does_not_affect_others(tmp_path, text_file):
    results, shares = {}, {}

    def progress(run, share):
        shares.setdefault(run.config.seed, []).append(share)
        if run.config.seed == 1 and share > 0:
            for process in multiprocessing.active_children():
                process.kill()

    steps = (4, 10**8, 4)  # so that the second is still training when it is killed
    configs = [tiny_config(tmp_path, text_file, seed=s, steps=n, eval_interval=n) for s, n in enumerate(steps)]
    runs = [Run("bigram", config) for config in configs]
    runs.append(Run("residual", tiny_config(tmp_path, text_file, seed=3)))  # with settings of another rung
    train_all(runs, 1, progress, lambda run, result: results.update({run.config.seed: result}))
    assert "its process was ended from outside" in results[1].error
    assert "AttributeError" in results[3].error and results[0].error == results[2].error == ""
    for seed in (0, 2):
        assert (shares[seed][0], shares[seed][-1]) == (0, 1) and shares[seed] == sorted(shares[seed])
    assert shares[1][0] == 0 < shares[1][1] < 1e-3  # long before the first evaluation
    final = read_log(tmp_path / "log.csv").groupby("run", sort=False).last()
    assert final["val_loss"].iloc[[0, 2]].tolist() == pytest.approx([results[s].val_loss for s in (0, 2)], abs=1e-6)
    assert multiprocessing.active_children() == []


def test_a_run_that_its_worker_has_not_begun_ends_with_the_command(tmp_path, text_file):
    """Both pipes are closed while the worker starts, with a run still in one of them."""
    context = multiprocessing.get_context("spawn")
    pipe, its_pipe = context.Pipe()
    its_lifeline, lifeline = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(its_pipe, its_lifeline, 1))
    process.start()
    pipe.send(Run("bigram", tiny_config(tmp_path, text_file, steps=10**8)))
    for each in (pipe, lifeline, its_pipe, its_lifeline):
        each.close()
    process.join(timeout=120)
    ended = not process.is_alive()
    process.kill()
    assert ended and not (tmp_path / "log.csv").exists()


@pytest.mark.skipif(os.name == "nt" or os.cpu_count() == 1, reason="no Ctrl-C to a process alone, or one run at a time")
def test_stopped_runs_are_saved_and_resumed(tmp_path, text_file, default_signals):
    """SIGKILL reaches the first process alone, which cannot pass it on. Ctrl-C reaches every process of a terminal."""
    command = [sys.executable, str(ROOT / "helper_scripts" / "run_ladder.py"), "bigram", "--seeds", "2"]
    command += ["--steps", "3000000", "--corpus", str(text_file), *places(tmp_path), "--out", str(tmp_path / "a.svg")]

    def logged() -> list[int]:
        log = tmp_path / "log.csv"
        return sorted(read_log(log).groupby("run")["step"].max()) if log.exists() else []

    def saved() -> list[int]:
        """The steps that both runs were saved at, once no process trains them any more."""
        for path in (tmp_path / "runs").glob("*.lock"):
            with FileLock(path, timeout=60):
                pass
        return [load_checkpoint(path)["step"] for path in sorted((tmp_path / "runs").glob("*.partial.pt"))]

    def start_and_stop(stop, beyond: int) -> tuple[str, str, int]:
        with subprocess.Popen(command, stdout=-1, stderr=-1, start_new_session=True, encoding="utf-8") as process:
            try:
                while len(steps := logged()) < 2 or steps[0] <= beyond:
                    assert process.poll() is None
                    time.sleep(0.1)
                stop(process.pid)
                return *process.communicate(), process.returncode
            finally:
                process.kill()

    _, error, status = start_and_stop(lambda pid: os.kill(pid, signal.SIGKILL), 0)
    assert status == -signal.SIGKILL and "Traceback" not in error
    first = saved()
    assert len(first) == 2 and any(step % bigram.Config().eval_interval for step in first)  # not only at evaluations
    printed, error, status = start_and_stop(lambda pid: os.killpg(pid, signal.SIGINT), max(first))
    assert "2 of 2 runs were stopped before; resuming them" in printed
    assert status == 130 and "Traceback" not in error and error.count("stopping") == 1
    assert [later > earlier for later, earlier in zip(saved(), first, strict=True)] == [True, True]
    assert len(logged()) == 2  # the runs kept their names


# Runs that are in the log


@pytest.fixture
def left_to_do(tmp_path, text_file):
    """A log with a run of bigram, its corpus, and a function for the runs that the command would still train."""
    flags = ["--steps", "2", "--sample-length", "0", "--corpus", str(text_file), *places(tmp_path)]
    run(bigram.LanguageModel, bigram.Config, flags)
    rows, corpus = read_log(tmp_path / "log.csv"), load_corpus(str(text_file))

    def left(rows=rows, corpus=corpus, again=False, **settings) -> list[Run]:
        config = tiny_config(tmp_path, text_file, **{"steps": 2, **settings})
        return run_ladder.left_to_do([("bigram", config)], rows, corpus, run_ladder.Options(again=again, device="cpu"))

    return rows, corpus, left


def test_a_run_in_the_log_is_not_trained_again(left_to_do):
    rows, corpus, left = left_to_do
    assert not left(rows)
    assert not left(rows, eval_interval=1)  # this does not change the result
    assert not left(rows, precision="fp32") and left(rows, precision="bf16")
    assert left(None) and left(rows, again=True)
    for settings in ({"seed": 1}, {"steps": 3}, {"learning_rate": 1.0}, {"holdout": True}):
        assert left(rows, **settings)
    assert left(rows, corpus=replace(corpus, sha256="f" * 64))
    assert left(rows.assign(steps=9))  # did not finish
    for column in ("torch", "device", "rung_code", "shared_code"):
        assert left(rows.assign(**{column: "another"}))


def test_a_stopped_run_is_resumed_only_with_the_same_code(left_to_do, tmp_path):
    left = left_to_do[-1]
    (file,) = (tmp_path / "runs").glob("*.pt")
    content = torch.load(file, weights_only=True)
    for other in ({"rung_code": "another"}, {"shared_code": "another"}, {}):
        stopped = content | {"step": 1, "optimizers": [], "metadata": content["metadata"] | other}
        torch.save(stopped, file.with_suffix(".partial.pt"))
        assert [run.config.resume for run in left(None)] == [not other]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bigrum"], "there is no rung bigrum"),
        (["bigram --seed 3"], "bigram --seed 3: --seed is no setting"),
        (["bigram", "--seeds"], "there is nothing to train"),
        (["bigram", "--seeds", "0"], "there is nothing to train"),
        (["bigram", "--steps", "0"], "--steps is 0"),
        (["gpt", "bigram", "--preset", "laptop"], "bigram --preset laptop: "),
        (["gpt --preset laptop"], "put them outside the quotes"),
        (["--seeds", "5", "gpt"], "name the rungs before --seeds"),
        (["bigram", "--out", "x.xyz"], "does not end in a kind of picture"),
    ],
)
def test_wrong_arguments_are_a_one_line_error_before_any_training(args, words, tmp_path, command):
    assert words in command(run_ladder, *args, *places(tmp_path), fails=True)
    assert list(tmp_path.iterdir()) == []


def configs_of(*rungs, **options):
    configs, broken = run_ladder.all_configs(run_ladder.Options(rungs, **options))
    assert not broken
    return configs


def test_a_preset_has_its_rungs_and_seeds_are_a_number_or_a_list():
    own, laptop = dict(configs_of()), dict(configs_of(preset="laptop", holdout=True))
    assert own.keys() | laptop.keys() == set(RUNGS) and own.keys() & laptop.keys() == set()
    assert laptop.keys() == {rung for rung in RUNGS if issubclass(rung_module(rung).Config, ScaledConfig)}
    assert {(config.block_size, config.holdout) for config in own.values()} == {(8, False)}
    assert {(config.n_embd, config.steps, config.holdout) for config in laptop.values()} == {(128, 1000, True)}
    ((_, one),) = configs_of("rotary --n-layer 2 --steps 7", preset="laptop")
    assert (one.n_embd, one.n_layer, one.steps) == (128, 2, 7)  # flags override the preset
    assert [config.seed for _, config in configs_of("bigram", seeds=(3,))] == [0, 1, 2]
    assert [config.seed for _, config in configs_of("bigram", seeds=(7, 3, 7))] == [7, 3]
