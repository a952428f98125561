"""Generation: the context that a model gets, its cache, and the command."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import bigram
import gpt
from helper_scripts import models, sample
from stages import modern, pre_norm, rotary
from training import run
from training.cache import caches
from training.generation import generate, stream

VOCAB, T = 65, 8
KINDS = pytest.mark.parametrize("module", [pre_norm, gpt, modern], ids=["none", "gpt", "modern"])


@pytest.fixture
def prompt():
    return torch.tensor([5, 3, 60])


def random_model(module, small):
    """A rung's model with random weights, in float64, so that logits computed in two ways do not differ visibly."""
    torch.manual_seed(0)
    model = module.LanguageModel(VOCAB, small(module)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def has_own_window(model) -> bool:
    """Whether the model's cache keeps its own window."""
    return any(cache.window is not None for cache in caches(model))


def test_the_text_is_the_same_with_and_without_the_cache(rung, small, prompt):
    """Over four contexts; if the cache keeps its own window, over the first context alone."""
    model = random_model(rung, small)
    length = T - len(prompt) if has_own_window(model) else 4 * T
    for settings in ({"temperature": 0}, {"temperature": 0.7}, {"top_k": 3}):
        one, other = (
            generate(model, prompt, length, T, generator=torch.Generator().manual_seed(2), cached=cached, **settings)
            for cached in (True, False)
        )
        assert torch.equal(one, other)
        assert len(set(one.tolist())) > 3


@pytest.mark.parametrize("module", [rotary, modern], ids=["rotary", "modern"])
@torch.no_grad()
def test_a_cache_with_a_window_attends_to_the_last_characters(module, small, prompt):
    """Compared with one forward pass of the same weights over four contexts, with a mask that allows T positions."""
    model = random_model(module, small)
    whole = module.LanguageModel(VOCAB, small(module, block_size=4 * T)).double().eval()
    whole.load_state_dict(model.state_dict())
    whole.causal_mask += torch.full((4 * T, 4 * T), float("-inf")).tril(-T)
    ids = generate(model, prompt, 4 * T - len(prompt), T, temperature=0)
    assert torch.equal(whole(ids[None])[0, len(prompt) - 1 : -1].argmax(dim=-1), ids[len(prompt) :])
    assert not torch.equal(ids, generate(model, prompt, 4 * T - len(prompt), T, temperature=0, cached=False))


@KINDS
@torch.no_grad()
def test_greedy_generation_takes_the_likeliest_character_after_its_window(module, small, prompt):
    """The window by hand: all characters up to the context; past it the last T, or its later half and what follows."""
    model = random_model(module, small)
    ids, start = generate(model, prompt, 4 * T, T, temperature=0, cached=not has_own_window(model)), 0
    for end in range(len(prompt), len(ids)):
        if end - start > T:
            start = end - T if not caches(model) or has_own_window(model) else start + T // 2
        assert ids[end] == model(ids[None, start:end])[0, -1].argmax(), end


def test_cached_characters_are_computed_once(small, prompt):
    """Characters in forward passes: with the cache one each, and half a context each time that the window moves."""
    model, seen = gpt.LanguageModel(VOCAB, small(gpt, block_size=32)).eval(), []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.shape[1]))
    generate(model, prompt, 100, 32)
    assert len(seen) == 100
    assert sum(seen) <= 3 + 100 + (103 // 16) * 17
    seen.clear()
    generate(model, prompt, 100, 32, cached=False)
    assert sum(seen) == 100 * 32


def test_texts_that_are_generated_in_turn_do_not_affect_each_other(small, prompt):
    model = random_model(gpt, small)
    whole = [generate(model, start, 2 * T, T, temperature=0).tolist()[3:] for start in (prompt, prompt + 1)]
    streams = [stream([(model, T)], start, temperature=0) for start in (prompt, prompt + 1)]
    logits = model(prompt[None])
    written = [(*map(next, streams), torch.equal(model(prompt[None]), logits)) for _ in range(2 * T)]
    assert written == list(zip(*whole, [True] * 2 * T, strict=True))


@pytest.mark.parametrize("temperature", [1e-46, 5e-324])
def test_the_smallest_temperatures_are_greedy(temperature, small, prompt):
    greedy = [generate(random_model(pre_norm, small), prompt, 20, T, temperature=t) for t in (temperature, 0)]
    assert torch.equal(*greedy)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_file):
    """Checkpoints of three rungs, one of them with two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for module, seed in ((bigram, 0), (pre_norm, 0), (pre_norm, 1), (gpt, 0)):
        flags = ["--seed", str(seed), "--steps", "3", "--sample-length", "0", "--corpus", str(text_file)]
        flags += ["--device", "cpu", "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
        if module is gpt:
            flags += ["--n-embd", "12", "--n-layer", "1", "--block-size", "8", "--batch-size", "2"]
        run(module.LanguageModel, module.Config, flags)
    return folder


@pytest.fixture
def sample_output(folder, command):
    """What sample.py prints with these flags."""
    return lambda *args, **how: command(sample, *args, "--runs-dir", folder, "--device", "cpu", **how)


def test_sample_generates_from_a_checkpoint(folder, sample_output):
    (file,) = folder.glob("pre_norm-seed1-*.pt")
    flags = ["--prompt", "to be", "--length", "50"]
    text = sample_output(file, *flags)
    assert text.startswith("to be") and len(text) == 5 + 50 + 1
    # a rung's name stands for its latest checkpoint
    assert text == sample_output("pre_norm", *flags) != sample_output("pre_norm", *flags, "--seed", "1")
    greedy = sample_output("pre_norm", *flags, "--temperature", "0")
    assert greedy == sample_output("pre_norm", *flags, "--top-k", "1", "--seed", "5") != text
    assert sample_output(*flags) == sample_output("gpt", *flags) == sample_output("gpt", *flags, "--no-cached")


def test_sample_prints_text_as_it_is_generated(folder):
    """The beginning of a text that would take hours can be read. Closing the pipe ends the command silently."""
    words = [sys.executable, str(ROOT / "helper_scripts" / "sample.py"), "gpt", "--length", "1000000000"]
    words += ["--prompt", "to be", "--runs-dir", str(folder), "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.read(30).startswith(b"to be")
            process.stdout.close()
            process.wait(timeout=60)
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_sample_replaces_control_characters(folder, tmp_path, sample_output):
    """A model may generate the control characters of its training text, which anybody may have written."""
    content = torch.load(next(iter(folder.glob("bigram-*.pt"))), weights_only=True)
    strange = "\x1b\x07\x9b\r\t\n"
    content["metadata"]["alphabet"] = strange + content["metadata"]["alphabet"][len(strange) :]
    torch.save(content, tmp_path / "other.pt")
    text = sample_output(tmp_path / "other.pt", "--prompt", "\x1b\t\x9b\r\n", "--length", "200")
    assert text.startswith("\ufffd\t\ufffd\n") and not set(text) & set("\x1b\x07\x9b\r")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gpt", "--prompt", "to be, 5 €"], "--prompt: the character ','"),
        (["residual"], "there is no checkpoint of residual in"),
        (["modren"], "there is no rung modren; the ladder has bigram, "),
        (["nothing.pt"], "there is no checkpoint nothing.pt"),
        (["gelu"], "gelu is not on the ladder; add"),
        (["--temperature", "inf"], "--temperature is inf; it has to be a finite number"),
        (["--length", "-1"], "--length is -1; it has to be 0 or more"),
    ],
)
def test_an_impossible_sample_is_a_one_line_error(args, words, tmp_path, monkeypatch, sample_output):
    monkeypatch.setattr(models, "ROOT", tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "gelu.py").touch()
    assert words in sample_output(*args, fails=True)
