"""What several test files need: the rungs as modules, small settings for them, and texts to train on."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time, a thread each

import pytest
import torch
from hypothesis import settings

from data import Corpus, load_corpus
from stages import LADDER

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("untimed", deadline=None)  # a slow machine is no failure
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
    """Makes a rung's Config at the size of the small ones, so that a scaled-up rung takes milliseconds too."""

    def make(module, **given):
        own = module.Config()
        wanted = {"block_size": 8, "batch_size": 4, "n_embd": 32, "n_head": 4, "dropout": 0.0}
        wanted |= {"n_layer": min(3, getattr(own, "n_layer", 3))} | given
        return module.Config(**{name: value for name, value in wanted.items() if hasattr(own, name)})

    return make


@pytest.fixture
def usual_signals():
    """Ctrl-C and its like as in a terminal, for this process and its children, however the tests were started.

    A process in the background, or under nohup, ignores some signals, and its children inherit that.
    """
    usual = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in usual.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shakespeare() -> Corpus:
    """The real corpus, as a run gets it. Where it cannot be fetched, tests that need it are skipped."""
    corpus = load_corpus()
    if corpus.name != "tinyshakespeare":
        pytest.skip("data/input.txt is not there and could not be fetched")
    return corpus


@pytest.fixture(scope="session")
def text() -> str:
    """A few thousand characters with some order in them, the same everywhere."""
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
