"""What a text and a run keep in memory, and that a long text takes the same way as a short one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import data.sources
from data import UserError, load_corpus
from data.corpus import LONGEST_VAL

TEXT = "Wer 'ro\u0308tet'\r\nin 🎭 → so λ" * 40  # characters of one to four bytes


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000, 10**6])
def test_a_text_read_in_pieces_is_the_text(piece, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode("utf-8"))
    monkeypatch.setattr(data.sources, "PIECE", piece)
    corpus = load_corpus(str(path))
    assert corpus.tokenizer.decode(torch.cat([corpus.train, corpus.val])) == TEXT


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("broken", [b"\xff", b"\xe2\x82", b"\xf0\x9f\x8e"])
def test_where_a_text_is_broken_is_found_in_any_piece(piece, broken, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode("utf-8") + broken)
    monkeypatch.setattr(data.sources, "PIECE", piece)
    with pytest.raises(UserError, match=f"byte {broken[0]:#04x} at position {len(TEXT.encode('utf-8'))}\\b"):
        load_corpus(str(path))


def test_ids_past_a_size_live_in_a_file_that_goes(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("to be or not " * 100, encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    in_memory = load_corpus(str(path), data_dir=scratch)
    maps, memmap = [], np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **kwargs: maps.append(memmap(*args, **kwargs)) or maps[-1])
    monkeypatch.setattr(data.sources, "IN_MEMORY", 1000)
    mapped = load_corpus(str(path), data_dir=scratch)
    assert np.shares_memory(maps.pop(), mapped.train.numpy())
    assert torch.equal(mapped.train, in_memory.train) and torch.equal(mapped.val, in_memory.val)
    for one, other in zip(mapped.batch(1, 2, 3, 4), in_memory.batch(1, 2, 3, 4), strict=True):
        assert torch.equal(one, other)
    del mapped
    assert list(scratch.iterdir()) == []


def test_the_last_tenth_is_for_validation_up_to_a_million(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 1_500_000, encoding="utf-8")
    corpus = load_corpus(str(path))
    assert (len(corpus.train), len(corpus.val)) == (15_000_000 - LONGEST_VAL, LONGEST_VAL)
    assert corpus.tokenizer.decode(corpus.val[:10]) == "abcdefghij"


def peak_mb(code: str, *args: str) -> float:
    """Most memory, in MB, that a Python process with this code has held."""
    resource = pytest.importorskip("resource")  # Windows has none
    unit = 1 if sys.platform == "darwin" else 1024
    code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, encoding="utf-8", check=True)
    assert resource
    return int(done.stdout.split()[-1]) * unit / 1e6


def test_a_long_text_takes_its_ids_and_little_else(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"To be, or not to be\n" * 10_000_000)  # 200 MB
    code = "import sys; from data import load_corpus; corpus = load_corpus(sys.argv[1]); assert len(corpus.train) > 1e6"
    nothing = peak_mb("import data")
    assert peak_mb(code, str(path)) - nothing < 200 + 40


def test_rung_8_keeps_below_3_gb_at_any_batch(tmp_path, text_file):
    flags = ["--steps", "1", "--sample-length", "2", "--corpus", str(text_file), "--device", "cpu"]
    flags += ["--loss-csv", str(tmp_path / "log.csv"), "--runs-dir", str(tmp_path), "--batch-size", "32"]
    code = "import sys; import gpt; gpt.run(gpt.LanguageModel, gpt.Config, sys.argv[1:])"
    assert peak_mb(code, *flags) < 3000
