"""The table of a rung's modules, against shapes and parameters by hand."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from torch import nn

from data import load_corpus
from helper_scripts import shapes
from helper_scripts.models import rung_module
from stages import pre_norm

SIZES = ["--n-embd", "12", "--n-head", "2", "--n-layer", "3", "--block-size", "8", "--batch-size", "4"]


def rows(printed: str) -> list[tuple[str, list[list[int]], int]]:
    """For each module: its name, its shapes, and the parameters in its row."""
    lines = printed.partition("Layer (type")[2].splitlines()[1:]
    found = []
    for line in lines:
        sizes = [[int(size) for size in each.split(",")] for each in re.findall(r"\[([\d, ]+)\]", line)]
        parameters = line.split()[-1].replace(",", "")
        found.append((re.search(r"\((\w+)\)", line)[1], sizes, 0 if parameters == "--" else int(parameters)))
    return found


def test_only_the_first_of_equal_blocks_is_shown_in_full(text_file, command):
    printed = command(shapes, "modern", *SIZES, "--corpus", text_file, "--device", "cpu")
    V, x = load_corpus(str(text_file)).tokenizer.vocab_size, [4, 8, 12]
    ours = rows(printed)
    assert ours[:2] == [("LanguageModel", [[4, 8], [4, 8, V]], 0), ("token_embedding", [[4, 8], x], 12 * V)]
    assert ours[-1] == ("lm_head", [x, [4, 8, V]], 12 * V)
    for row in (
        ("0", [x, x], 0),
        ("conv", [[4, 12, 3 + 8], [4, 12, 8]], 12 * 4),
        ("attention", [x, x], 2),  # value_lambdas
        ("qkv", [x, [4, 8, 36]], 12 * 36),
        ("k_norm", [[4, 2, 8, 6]] * 2, 6),
        ("proj", [x, x], 12 * 12),
        ("down", [[4, 8, 32], x], 32 * 12),
    ):
        assert row in ours
    block = 2 + 12 * 36 + 2 * 6 + 12 * 12 + 3 * 32 * 12 + 2 * 12 + 2 * 12 * 4
    assert [row for row in ours if row[0] in "12"] == [("1", [x, x], block), ("2", [x, x], block)]
    assert sum(row[0] == "qkv" for row in ours) == 1


@pytest.mark.parametrize("rung", ["multi_head", "gpt", "averaging", "distillation"])
def test_the_parameters_add_up_to_the_total(rung, text_file, command):
    words = SIZES[: 2 if rung == "multi_head" else None]
    printed = command(shapes, rung, *words, "--corpus", text_file, "--device", "cpu")
    sizes = {word[2:].replace("-", "_"): int(size) for word, size in zip(words[::2], words[1::2], strict=True)}
    module, vocab_size = rung_module(rung), load_corpus(str(text_file)).tokenizer.vocab_size
    total = sum(each.numel() for each in module.LanguageModel(vocab_size, module.Config(**sizes)).parameters())
    assert sum(parameters for _, _, parameters in rows(printed)) == total
    assert f"{rung}: {total:,} parameters" in printed


class OwnRung(nn.Module):
    """Two equal blocks, and one with another size inside."""

    def __init__(self, vocab_size, config):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, n), nn.Linear(n, vocab_size)) for n in (5, 5, 6)))

    def forward(self, idx):
        x = self.embedding(idx)
        return sum(block(x) for block in self.blocks)


def test_blocks_that_differ_are_shown_in_full(text_file, command, monkeypatch):
    monkeypatch.setattr(shapes, "rung_module", lambda _: SimpleNamespace(LanguageModel=OwnRung, Config=pre_norm.Config))
    V = load_corpus(str(text_file)).tokenizer.vocab_size
    ours = [row[2] for row in rows(command(shapes, "pre_norm", "--corpus", text_file, "--device", "cpu"))]
    first, last = [0, 4 * 5 + 5, 5 * V + V], [0, 4 * 6 + 6, 6 * V + V]
    assert ours == [0, 4 * V, 0, *first, sum(first), *last]


def test_flags_of_the_rung_may_be_inside_or_outside_quotes(text_file, command):
    flags = ["--corpus", text_file, "--device", "cpu", "--seed", "3"]
    printed = command(shapes, "pre_norm", "--n-layer", "1", *flags)
    assert printed == command(shapes, "pre_norm --n-layer 1", *flags) != command(shapes, "pre_norm", *flags)
    assert "there is no rung gelu; the ladder has bigram" in command(shapes, "gelu", fails=True)
    assert "--dropout" in command(shapes, "bigram", "--dropout", "0.1", fails=True)
    assert "--block-size" in command(shapes, "bigram", "--block-size", "9999", "--corpus", text_file, fails=True)
