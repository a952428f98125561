"""Flags are read as a Config and back; wrong settings are a one-line error."""

import contextlib
import dataclasses
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import gpt
from data import read_log
from training import ScaledConfig, run
from training.cli import parse
from training.config import all_flags, changed_flags, config_hash, settings
from training.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_flag_changes_its_own_setting_of_a_preset_alone(preset):
    plain = parse(gpt.Config, "", ["--preset", preset])
    assert {name: getattr(plain, name) for name in PRESETS[preset]} == PRESETS[preset]
    rest = settings(ScaledConfig()).keys() - PRESETS[preset].keys()
    assert all(getattr(plain, name) == getattr(ScaledConfig(), name) for name in rest)
    typed = ["--n-layer=2", "--holdout", "--preset", preset]
    assert parse(gpt.Config, "", typed) == dataclasses.replace(plain, n_layer=2, holdout=True)


FLAGS = [
    [],
    ["--n-layer", "3", "--holdout", "--learning-rate", "1e-05", "--schedule", "constant", "--sampling", "random"],
    ["--steps", "7350", "--dropout", "0.0", "--minutes", "2.5", "--weight-decay", "0"],
    [
        "--prompt=-- to be",
        "--seed",
        "7",
        "--top-k",
        "3",
        "--threads",
        "2",
        "--corpus",
        "a b.txt",
        "--loss-csv",
        "x.csv",
    ],
]


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_flags_are_read_back_as_the_same_config(preset, flags):
    config = parse(gpt.Config, "", [*flags, *(["--preset", preset] if preset else [])])
    assert parse(gpt.Config, "", all_flags(config)) == config
    again = parse(gpt.Config, "", changed_flags(config).split())
    assert settings(again) == settings(config) and config_hash(again) == config_hash(config)
    if not flags:
        assert changed_flags(config) == (f"--preset {preset}" if preset else "")


BAD = [
    ["--steps", "0", "--steps is 0; it has to be 1 or more"],
    ["--steps", "many", "--steps"],
    ["--n-head", "5", "--n-embd 384 is not divisible by --n-head 5; try --n-embd 390"],
    ["--n-embd", "18", "--n-embd 18 gives each of 6 heads 3 channels, an odd number; try --n-embd 24"],
    ["--learning-rate", "nan", "--learning-rate is nan; it has to be a finite number above 0"],
    ["--dropout", "1", "--dropout is 1.0; it has to be at least 0 and below 1"],
    ["--device", "abacus", "--device abacus is not known"],
    ["--preset", "huge", "huge"],
    ["--stepz", "3", "Unrecognized options: --stepz, 3; --help lists the flags"],
    ["--threads", "0", "--threads is 0; it has to be auto, or 1 or more"],
    ["--minutes", "1", "--resume", "--resume needs the number of steps"],
    ["--corpus", "no/such/file.txt", "file.txt"],
    ["--corpus", "EMPTY", "is empty"],
    ["--block-size", "100000", "too short"],
    ["--n-embd", "12000000000000", "out of memory; try a smaller"],
    ["--prompt", "to be 🎭", "'🎭' at position 6"],
    ["--loss-csv", "OTHER", "line 1 of"],
    ["--loss-csv", "FOLDER", "cannot write the loss log"],
    ["--runs-dir", "OTHER", "choose another folder with --runs-dir"],
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: " ".join(case[:-1]))
def test_wrong_settings_are_a_one_line_error_and_write_nothing(case, tmp_path, text_file, capsys):
    for name, raw in {"EMPTY": b"", "OTHER": b"a,b\n1,2\n"}.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "FOLDER").mkdir()
    before = sorted(tmp_path.iterdir())
    *flags, words = (str(tmp_path / word) if word.isupper() else word for word in case)
    places = ["--loss-csv", str(tmp_path / "log.csv"), "--runs-dir", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as stop:
        run(gpt.LanguageModel, gpt.Config, ["--corpus", str(text_file), "--device", "cpu", *places, *flags])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert words in printed.err
    left = [path for path in tmp_path.iterdir() if path.suffix != ".lock" and path != tmp_path / "runs"]
    assert sorted(left) == before and not list(tmp_path.glob("runs/*"))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pseudo-terminals")
def test_a_wrong_flag_is_a_one_line_error_without_colour_on_a_terminal():
    import pty

    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "60", "FORCE_COLOR": "1"}
    command = [sys.executable, str(ROOT / "bigram.py"), "--learning-rat", "3"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # how Linux reports that the other end is closed
            while piece := os.read(ours, 4096):
                printed += piece
    os.close(ours)
    assert process.returncode == 2
    text = printed.decode("utf-8")
    assert text.startswith("error: Unrecognized options: --learning-rat") and text.endswith("lists the flags\r\n")
    assert text.count("\n") == 1 and text[:-2].isprintable() and not set(text) & set("│╭╰─╮╯")


@pytest.mark.skipif(os.name != "posix", reason="Windows has neither")
def test_a_run_succeeds_in_an_ascii_locale_and_without_stdout(tmp_path, text):
    """In an ASCII locale, with a file name that is not ASCII, and with stdout closed, as by >&-."""
    (tmp_path / "naïve.txt").write_text(text, encoding="utf-8")
    flags = ["--corpus", "naïve.txt", "--steps", "2", "--device", "cpu", "--loss-csv", "log.csv", "--runs-dir", "."]
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, str(ROOT / "bigram.py"), *flags]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"LC_ALL": "C", "PYTHONUTF8": "0"}, capture_output=True
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert read_log(tmp_path / "log.csv")["corpus"].iloc[-1].startswith("naïve.txt (")


def test_a_device_may_be_named_with_its_index(tmp_path, text_file):
    places = ["--loss-csv", str(tmp_path / "log.csv"), "--runs-dir", str(tmp_path)]
    run(
        gpt.LanguageModel,
        gpt.Config,
        ["--preset", "laptop", "--steps", "1", "--corpus", str(text_file), "--device", "cpu:0", *places],
    )
    assert set(read_log(tmp_path / "log.csv")["device"]) == {"cpu"}


def test_a_command_of_another_copy_of_the_project_does_not_use_this_ones_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "provenance.py").touch()
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "stages" / "residual.py")])
    with pytest.raises(SystemExit) as stopped:
        run(gpt.LanguageModel, gpt.Config, ["--steps", "1"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert str(ROOT) in error and f"in {tmp_path}, run pip install -e ." in error and error.count("\n") == 1
