"""Text from a model: what it sees, what it remembers, and the command that has it write."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import bigram
import gpt
from helper_scripts import sample as command
from stages import pre_norm
from training import run
from training.cache import caches, remembering
from training.sampling import sample, stream

VOCAB, T = 65, 8


@pytest.fixture
def model(rung, small):
    """Each rung off its start, in float64, where two ways to the same logits differ by nothing that could show."""
    torch.manual_seed(0)
    made = rung.LanguageModel(VOCAB, small(rung)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


@pytest.fixture
def prompt():
    return torch.tensor([5, 3, 60])


def test_remembered_and_recomputed_are_the_same_text(model, prompt):
    """Through the first context and three further ones; but with a window that moves by itself, only the first."""
    length = T - len(prompt) if endless(model) else 5 * T
    one, other = (sample(model, prompt, length, T, temperature=0, cached=cached) for cached in (True, False))
    assert torch.equal(one, other)
    assert len(set(one.tolist())) > 3
    for settings in ({"temperature": 0.7}, {"top_k": 3}):
        draws = [
            sample(model, prompt, length, T, generator=torch.Generator().manual_seed(2), cached=cached, **settings)
            for cached in (True, False)
        ]
        assert torch.equal(*draws)


def endless(model) -> bool:
    return any(cache.window is not None for cache in caches(model))


@torch.no_grad()
def test_a_window_that_moves_by_itself_is_attention_to_the_last_characters(rung, small, prompt, model):
    """The text in one go, by the same weights in a model of four times the context that attends to T at a time."""
    if not endless(model):
        pytest.skip("its window moves on when it is read anew")
    whole = rung.LanguageModel(VOCAB, small(rung, block_size=4 * T)).double().eval()
    whole.load_state_dict(model.state_dict())
    for block in whole.blocks:
        block.attention.future += torch.full((4 * T, 4 * T), float("-inf")).tril(-T)
    ids = sample(model, prompt, 4 * T - len(prompt), T, temperature=0)
    logits = whole(ids[None])[0]
    assert torch.equal(logits[len(prompt) - 1 : -1].argmax(dim=-1), ids[len(prompt) :])
    assert not torch.equal(ids, sample(model, prompt, 4 * T - len(prompt), T, temperature=0, cached=False))


@torch.no_grad()
def test_each_character_is_the_likeliest_after_what_may_be_seen(model, prompt):
    """The rule by hand: up to the context all there is; beyond it, the last T, or where positions count its half."""
    ids = sample(model, prompt, 4 * T, T, temperature=0, cached=not endless(model))
    start = 0
    for end in range(len(prompt), len(ids)):
        if end - start > T:
            start = end - T if not caches(model) or endless(model) else start + T // 2
        assert ids[end] == model(ids[None, start:end])[0, -1].argmax(), end


@torch.no_grad()
def test_a_text_in_pieces_gives_the_logits_of_the_whole(small):
    torch.manual_seed(0)
    model, idx = gpt.LanguageModel(VOCAB, small(gpt)).eval(), torch.randint(VOCAB, (3, T))
    whole = model(idx)
    for cuts in ([1] * T, [3, 1, 4], [T]):
        with remembering(model, {}):
            parts = [model(piece) for piece in idx.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(model(idx), whole)  # and nothing is remembered afterwards


def test_what_is_remembered_is_computed_once(small, prompt):
    """Characters that go through the model: with the cache one each, and half a context when that has to move on."""
    model, seen = gpt.LanguageModel(VOCAB, small(gpt, block_size=32)).eval(), []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.shape[1]))
    sample(model, prompt, 100, 32)
    assert len(seen) == 100
    assert sum(seen) <= 3 + 100 + (103 // 16) * 17
    seen.clear()
    sample(model, prompt, 100, 32, cached=False)
    assert sum(seen) == 100 * 32


def test_texts_that_are_written_in_turn_do_not_meet(small, prompt):
    model = gpt.LanguageModel(VOCAB, small(gpt)).eval()
    whole = sample(model, prompt, 2 * T, T, temperature=0).tolist()[3:]
    other = sample(model, prompt + 1, 2 * T, T, temperature=0).tolist()[3:]
    one, two = stream(model, prompt, T, temperature=0), stream(model, prompt + 1, T, temperature=0)
    logits = model(prompt[None])
    written = [(next(one), next(two), torch.equal(model(prompt[None]), logits)) for _ in range(2 * T)]
    assert written == list(zip(whole, other, [True] * 2 * T, strict=True))


@pytest.mark.parametrize("temperature", [1e-46, 5e-324])
def test_the_smallest_temperature_is_like_none(temperature, small, prompt):
    model = pre_norm.LanguageModel(VOCAB, small(pre_norm)).eval()
    bold = [sample(model, prompt, 20, T, temperature=t) for t in (temperature, 0)]
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


def test_a_checkpoint_writes(runs, monkeypatch, capsys):
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
    assert headings[1].startswith("--- pre_norm --steps 3, seed 1, words.txt: validation loss ")
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


def test_the_text_comes_as_it_is_written(runs):
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


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gpt", "--prompt", "to be, 5 €"], "--prompt: the character ','"),
        (["residual"], "there is no checkpoint of residual in"),
        (["nothing.pt"], "there is no checkpoint nothing.pt"),
        (["--ladder", "gpt"], "--ladder takes every rung"),
        (["--write", "page.md"], "add --ladder"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--length", "-1"], "--length, --top-k and --seed have to be 0 or more"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(args, words, runs, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        said(monkeypatch, capsys, "--runs-dir", runs, *args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_checkpoint_of_another_architecture_is_refused(runs, tmp_path, monkeypatch, capsys):
    (file,) = runs.glob("pre_norm-seed0-*.pt")
    for name, value, words in (
        ("experiment", "stranger", "which the ladder does not name"),
        ("experiment", "bigram", "does not fit bigram as it is now"),
    ):
        content = torch.load(file, weights_only=True)
        content["facts"][name] = value
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(SystemExit):
            said(monkeypatch, capsys, tmp_path / "other.pt")
        assert words in capsys.readouterr().err
