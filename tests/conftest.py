"""Fixtures and helpers for several test files: the rungs as modules, small settings for them, texts to train on."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time, with one thread each

import pandas as pd
import pytest
import torch
from hypothesis import settings

from data import Corpus, load_corpus
from data.loss_log import COLUMNS
from helper_scripts.models import config_of, rung_path
from stages import LADDER
from training.config import changed_flags, config_hash
from training.provenance import rung_code, shared_code

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("untimed", deadline=None)  # a slow machine must not fail a test
settings.load_profile("untimed")


def rung_id(module) -> str:
    return module.__name__.rpartition(".")[2]


MODULES = tuple(importlib.import_module(name) for name in LADDER)


@pytest.fixture(params=MODULES, ids=rung_id)
def rung(request):
    """Each rung in turn."""
    return request.param


@pytest.fixture
def small():
    """Makes a rung's Config with small sizes, so that a scaled-up rung also takes milliseconds."""

    def make(module, **given):
        own = module.Config()
        wanted = {"block_size": 8, "batch_size": 4, "n_embd": 32, "n_head": 4, "dropout": 0.0}
        wanted |= {"n_layer": min(3, getattr(own, "n_layer", 3))} | given
        return module.Config(**{name: value for name, value in wanted.items() if hasattr(own, name)})

    return make


@pytest.fixture
def default_signals():
    """Default handlers for Ctrl-C and similar signals, for this process and its children.

    A process in the background, or under nohup, ignores some signals, and its children inherit that.
    """
    defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in defaults.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shakespeare() -> Corpus:
    """Tiny Shakespeare, as a run loads it. If it cannot be fetched, tests that need it are skipped."""
    corpus = load_corpus()
    if corpus.name != "tinyshakespeare":
        pytest.skip("data/input.txt is not there and could not be fetched")
    return corpus


@pytest.fixture(scope="session")
def text() -> str:
    """A few thousand characters of random words, the same on every machine."""
    words = (
        "ROMEO: to be or not that is the question whether nobler in mind suffer slings and arrows of outrageous fortune"
    )
    generator = torch.Generator().manual_seed(1)
    picks = torch.randint(len(words.split()), (1000,), generator=generator)
    return " ".join(words.split()[i] for i in picks)


@pytest.fixture(scope="session")
def corpus(text) -> Corpus:
    return Corpus.from_text("words", "0" * 64, text)


@pytest.fixture(scope="session")
def text_file(text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


NUMBERS = itertools.count()


def runs(label: str, *losses: float, first: int = 0, **columns) -> list[dict]:
    """Rows of the log for finished runs of `label` with the present code: one run a loss, seeds from `first` on."""
    rung, config = label.split()[0], config_of(label)
    row = {name: {str: "x", int: 5, float: 1.0}[kind] for name, kind in COLUMNS.items()}
    row |= {"rung": rung, "config": config_hash(config), "flags": changed_flags(config), "steps": config.steps}
    row |= {"rung_code": rung_code(rung_path(rung)), "shared_code": shared_code(), "precision": "fp32"}
    row |= {"corpus": "tinyshakespeare", "corpus_sha256": "86c4e6aa9db7", "device": "cpu"}
    rows = []
    for seed, loss in enumerate(losses, start=first):
        own = row | {"run": f"{rung}-{next(NUMBERS)}", "seed": seed} | columns
        for part in (0.0, 0.5, 1.0):  # a curve from 4.2 down to the loss
            step, value = int(own["steps"] * part), loss + (4.2 - loss) * (1 - part)
            rows.append(own | {"step": step, "val_loss": value, "train_loss": value - 0.1, "tokens": 256 * step})
    return rows


def staged(path: str) -> str:
    """A file as git has it, staged or committed, so that a new run of one's own does not fail the tests."""
    done = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout


@pytest.fixture(scope="session")
def published_log(tmp_path_factory) -> Path:
    """The committed log of losses."""
    path = tmp_path_factory.mktemp("published") / "log.csv"
    path.write_text(staged("data/loss_gpt_pd.csv"), encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def log(tmp_path):
    """Writes rows to a log file."""

    def write(*parts: list[dict]) -> Path:
        table = pd.DataFrame([row for part in parts for row in part], columns=list(COLUMNS))
        table.to_csv(tmp_path / "log.csv", index=False, lineterminator="\n")
        return tmp_path / "log.csv"

    return write


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a module's command; returns what it prints, or its one-line error."""

    def start(module, *args, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        capsys.readouterr()
        if not fails:
            module.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return start
