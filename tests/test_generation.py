"""Text from a model: what it sees, what it caches, and the command that prints it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import bigram
import gpt
from helper_scripts import models
from helper_scripts import sample as command
from stages import modern, pre_norm, rotary
from training import run
from training.cache import caches, use_cache
from training.generation import generate, stream

VOCAB, T = 65, 8
KINDS = pytest.mark.parametrize("module", [pre_norm, gpt, rotary, modern], ids=["none", "gpt", "rotary", "modern"])


@pytest.fixture
def prompt():
    return torch.tensor([5, 3, 60])


def made(module, small):
    """A rung's model off its start, in float64, where two ways to the same logits differ by nothing that could show."""
    torch.manual_seed(0)
    model = module.LanguageModel(VOCAB, small(module)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def endless(model) -> bool:
    """Whether its cache has a window of its own."""
    return any(cache.window is not None for cache in caches(model))


def test_cached_and_recomputed_are_the_same_text(rung, small, prompt):
    """Over the first context and three more; where the cache has a window of its own, over the first alone."""
    model = made(rung, small)
    length = T - len(prompt) if endless(model) else 4 * T
    for settings in ({"temperature": 0}, {"temperature": 0.7}, {"top_k": 3}):
        one, other = (
            generate(model, prompt, length, T, generator=torch.Generator().manual_seed(2), cached=cached, **settings)
            for cached in (True, False)
        )
        assert torch.equal(one, other)
        assert len(set(one.tolist())) > 3


@pytest.mark.parametrize("module", [rotary, modern], ids=["rotary", "modern"])
@torch.no_grad()
def test_a_cache_with_a_window_is_attention_to_the_last_characters(module, small, prompt):
    """The text in one go, by the same weights in a model of four times the context that attends to T at a time."""
    model = made(module, small)
    whole = module.LanguageModel(VOCAB, small(module, block_size=4 * T)).double().eval()
    whole.load_state_dict(model.state_dict())
    whole.causal_mask += torch.full((4 * T, 4 * T), float("-inf")).tril(-T)
    ids = generate(model, prompt, 4 * T - len(prompt), T, temperature=0)
    assert torch.equal(whole(ids[None])[0, len(prompt) - 1 : -1].argmax(dim=-1), ids[len(prompt) :])
    assert not torch.equal(ids, generate(model, prompt, 4 * T - len(prompt), T, temperature=0, cached=False))


@KINDS
@torch.no_grad()
def test_each_character_is_the_likeliest_after_what_may_be_seen(module, small, prompt):
    """The rule by hand: up to the context everything; beyond it the last T, or its later half and what follows."""
    model = made(module, small)
    ids, start = generate(model, prompt, 4 * T, T, temperature=0, cached=not endless(model)), 0
    for end in range(len(prompt), len(ids)):
        if end - start > T:
            start = end - T if not caches(model) or endless(model) else start + T // 2
        assert ids[end] == model(ids[None, start:end])[0, -1].argmax(), end


@torch.no_grad()
def test_a_text_in_pieces_gives_the_logits_of_the_whole(small):
    model, idx = made(gpt, small), torch.randint(VOCAB, (3, T), generator=torch.Generator().manual_seed(0))
    whole = model(idx)
    for cuts in ([1] * T, [3, 1, 4], [T]):
        with use_cache(model, {}):
            parts = [model(piece) for piece in idx.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(model(idx), whole)  # and nothing is cached afterwards


def test_what_is_cached_is_computed_once(small, prompt):
    """Characters that go through the model: with the cache one each, and half a context when that has to move on."""
    model, seen = gpt.LanguageModel(VOCAB, small(gpt, block_size=32)).eval(), []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.shape[1]))
    generate(model, prompt, 100, 32)
    assert len(seen) == 100
    assert sum(seen) <= 3 + 100 + (103 // 16) * 17
    seen.clear()
    generate(model, prompt, 100, 32, cached=False)
    assert sum(seen) == 100 * 32


def test_texts_that_are_generated_in_turn_do_not_meet(small, prompt):
    model = made(gpt, small)
    whole = [generate(model, start, 2 * T, T, temperature=0).tolist()[3:] for start in (prompt, prompt + 1)]
    streams = [stream(model, start, T, temperature=0) for start in (prompt, prompt + 1)]
    logits = model(prompt[None])
    written = [(*map(next, streams), torch.equal(model(prompt[None]), logits)) for _ in range(2 * T)]
    assert written == list(zip(*whole, [True] * 2 * T, strict=True))


@pytest.mark.parametrize("temperature", [1e-46, 5e-324])
def test_the_smallest_temperature_is_like_none(temperature, small, prompt):
    bold = [generate(made(pre_norm, small), prompt, 20, T, temperature=t) for t in (temperature, 0)]
    assert torch.equal(*bold)


# The command


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text_file):
    """Checkpoints of three rungs, one of them with two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for module, seed in ((bigram, 0), (pre_norm, 0), (pre_norm, 1), (gpt, 0)):
        flags = ["--seed", str(seed), "--steps", "3", "--sample-length", "0", "--corpus", str(text_file)]
        flags += ["--device", "cpu", "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
        if module is gpt:
            flags += ["--n-embd", "12", "--n-layer", "1", "--block-size", "8", "--batch-size", "2"]
        run(module.LanguageModel, module.Config, flags)
    return folder


def said(monkeypatch, capsys, *args) -> str:
    monkeypatch.setattr(sys, "argv", ["sample.py", "--device", "cpu", *map(str, args)])
    capsys.readouterr()
    command.main()
    return capsys.readouterr().out


def test_a_checkpoint_generates(runs, monkeypatch, capsys):
    (file,) = runs.glob("pre_norm-seed1-*.pt")
    flags = ["--prompt", "to be", "--length", "50", "--runs-dir", runs]
    text = said(monkeypatch, capsys, file, *flags)
    assert text.startswith("to be") and len(text) == 5 + 50 + 1
    assert text == said(monkeypatch, capsys, "pre_norm", *flags)  # its latest
    assert text != said(monkeypatch, capsys, "pre_norm", *flags, "--seed", "1")
    bold = said(monkeypatch, capsys, "pre_norm", *flags, "--temperature", "0")
    assert bold == said(monkeypatch, capsys, "pre_norm", *flags, "--top-k", "1", "--seed", "5") != text
    latest = said(monkeypatch, capsys, *flags)
    assert latest == said(monkeypatch, capsys, "gpt", *flags) == said(monkeypatch, capsys, "gpt", *flags, "--no-cached")


def test_every_rung_continues_the_same_prompt(runs, tmp_path, monkeypatch, capsys):
    flags = ["--ladder", "--prompt", "or not", "--length", "20", "--runs-dir", runs]
    text = said(monkeypatch, capsys, *flags)
    headings = [line for line in text.splitlines() if line.startswith("--- ")]
    assert [line.split()[1] for line in headings] == ["bigram", "pre_norm", "gpt"]
    assert headings[1].startswith("--- pre_norm --steps 3, seed 1, words.txt (")
    assert all(line.endswith(" after 3 steps") for line in headings)
    assert text.count("or not") == 3
    (runs / "residual-seed0-broken.pt").write_bytes(b"nothing")
    again = said(monkeypatch, capsys, *flags)
    assert again.startswith(text) and "left out: " in again and "residual-seed0-broken.pt" in again
    (runs / "residual-seed0-broken.pt").unlink()
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- samples: begin -->\n<!-- samples: end -->\nz\n", encoding="utf-8")
    assert "wrote the samples of 3 rungs" in said(monkeypatch, capsys, *flags, "--write", page)
    written = page.read_text(encoding="utf-8")
    assert all(line in written for line in text.split("\n\n")[0].splitlines())
    assert written.count("```") == 2 and written.startswith("a\n<!--") and written.endswith("-->\nz\n")


def test_the_text_comes_as_it_is_generated(runs):
    """The reader gets the beginning of a text that would take hours, and may leave: that ends it, without a word."""
    words = [sys.executable, str(ROOT / "helper_scripts" / "sample.py"), "gpt", "--length", "1000000000"]
    words += ["--prompt", "to be", "--runs-dir", str(runs), "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.read(30).startswith(b"to be")
            process.stdout.close()
            process.wait(timeout=60)
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_a_text_cannot_command_the_terminal(runs, tmp_path, monkeypatch, capsys):
    """Its control characters are those of the text that the model was trained on, which may be anybody's."""
    content = torch.load(next(iter(runs.glob("bigram-*.pt"))), weights_only=True)
    strange = "\x1b\x07\x9b\r\t\n"
    content["metadata"]["alphabet"] = strange + content["metadata"]["alphabet"][len(strange) :]
    torch.save(content, tmp_path / "other.pt")
    text = said(monkeypatch, capsys, tmp_path / "other.pt", "--prompt", "\x1b\t\x9b\r\n", "--length", "200")
    assert text.startswith("\ufffd\t\ufffd\n") and not set(text) & set("\x1b\x07\x9b\r")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gpt", "--prompt", "to be, 5 €"], "--prompt: the character ','"),
        (["residual"], "there is no checkpoint of residual in"),
        (["nothing.pt"], "there is no checkpoint nothing.pt"),
        (["gelu"], "gelu is not on the ladder; add"),
        (["--ladder", "gpt"], "--ladder takes every rung"),
        (["--write", "page.md"], "add --ladder"),
        (["--temperature", "inf"], "--temperature is inf; it has to be a finite number"),
        (["--length", "-1"], "--length is -1; it has to be 0 or more"),
    ],
)
def test_what_cannot_be_generated_is_said_in_one_line(args, words, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "ROOT", tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "gelu.py").touch()
    with pytest.raises(SystemExit) as stop:
        said(monkeypatch, capsys, "--runs-dir", runs, *args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("rung", "words"),
    [("stranger", "which the ladder does not name"), ("bigram", "does not fit bigram as it is now")],
)
def test_a_checkpoint_of_another_architecture_is_refused(rung, words, runs, tmp_path, monkeypatch, capsys):
    content = torch.load(next(iter(runs.glob("pre_norm-seed0-*.pt"))), weights_only=True)
    content["metadata"]["rung"] = rung
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        said(monkeypatch, capsys, tmp_path / "other.pt")
    assert words in capsys.readouterr().err
