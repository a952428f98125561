"""What a text and a run keep in memory, and that a long text takes the same way as a short one."""

import subprocess
import sys
from types import SimpleNamespace

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
    if sys.platform == "linux":  # where ru_maxrss starts from the parent's own
        report = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    else:
        report = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    command = [sys.executable, "-c", f"{code}\n{report}", *args]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return float(done.stdout.split()[-1]) * 1024 / 1e6


measures_memory = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no module resource")


@measures_memory
def test_a_long_text_takes_its_ids_and_little_else(tmp_path):
    path = tmp_path / "text.txt"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"To be, or not to be\n" * 50_000)  # 1 MB
    code = "import sys; from data import load_corpus; corpus = load_corpus(sys.argv[1]); assert len(corpus.train) > 1e6"
    nothing = peak_mb("import data")
    assert 150 < peak_mb(code, str(path)) - nothing < 200 + 40
    path.unlink()


@measures_memory
def test_rung_8_keeps_below_3_gb_at_four_times_its_batch(tmp_path, text_file):
    flags = ["--steps", "1", "--sample-length", "2", "--corpus", str(text_file), "--device", "cpu"]
    flags += ["--loss-csv", str(tmp_path / "log.csv"), "--runs-dir", str(tmp_path), "--batch-size", "32"]
    code = "import sys; import gpt; gpt.run(gpt.LanguageModel, gpt.Config, sys.argv[1:])"
    assert peak_mb(code, *flags) < 3000


@pytest.mark.parametrize("change", ["shorter", "longer", "other", "foreign"])
def test_a_text_that_changes_while_it_is_read_is_refused(change, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("to be or not " * 50, encoding="utf-8")
    room_for_ids = data.sources._room_for_ids

    def meanwhile(*args):  # between the first reading and the second
        text = {
            "shorter": "to be ",
            "longer": "to be or not " * 60,
            "other": "eb or not to " * 50,
            "foreign": "xyz" * 50,
        }
        path.write_text(text[change], encoding="utf-8")
        return room_for_ids(*args)

    monkeypatch.setattr(data.sources, "_room_for_ids", meanwhile)
    with pytest.raises(UserError, match="changed while it was read"):
        load_corpus(str(path))


def test_no_room_for_the_ids_is_said(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("to be or not " * 50, encoding="utf-8")
    monkeypatch.setattr(data.sources, "IN_MEMORY", 100)
    monkeypatch.setattr(data.sources.shutil, "disk_usage", lambda folder: SimpleNamespace(free=99))
    with pytest.raises(UserError, match="cannot keep 650 ids"):
        load_corpus(str(path), data_dir=tmp_path)
