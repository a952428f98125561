"""The memory of a text and of a run, and reading a text in pieces."""

import hashlib
import subprocess
import sys

import pytest
import torch

import data.sources
from data import UserError, load_corpus

TEXT = "\ufeffWer 'ro\u0308tet'\r\nin 🎭 → so λ" * 40  # characters of one to four bytes


@pytest.mark.parametrize("piece", [1, 3, 10**6])
def test_a_text_read_in_pieces_is_the_same_and_invalid_bytes_are_found(piece, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    monkeypatch.setattr(data.sources, "PIECE", piece)
    path.write_bytes(TEXT.encode("utf-8"))
    corpus = load_corpus(str(path))
    assert corpus.tokenizer.decode(torch.cat([corpus.train, corpus.val])) == TEXT
    assert corpus.sha256 == hashlib.sha256(TEXT.encode("utf-8")).hexdigest()
    for broken in (b"\xff", b"\xe2\x82", b"\xf0\x9f\x8e"):
        path.write_bytes(TEXT.encode("utf-8") + broken)
        with pytest.raises(UserError, match=f"byte {broken[0]:#04x} at position {len(TEXT.encode('utf-8'))}\\b"):
            load_corpus(str(path))


def peaks_mb(code: str, *args: str) -> list[float]:
    """Peak memory of a Python process in MB: after its first line, the imports, and at its end."""
    if sys.platform == "linux":  # where ru_maxrss starts from the parent's own
        report = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    else:
        report = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    command = [sys.executable, "-c", code.replace("\n", f"\n{report}\n", 1) + f"\n{report}", *args]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    lines = done.stdout.splitlines()
    return [float(line) * 1024 / 1e6 for line in (lines[0], lines[-1])]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no module resource")
def test_a_long_text_takes_a_byte_a_character_and_rung_8_less_than_3_gb(text_file, tmp_path):
    path = tmp_path / "text.txt"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"To be, or not to be\n" * 50_000)  # 1 MB
    code = "import sys; from data import load_corpus\ncorpus = load_corpus(sys.argv[1]); assert len(corpus.train) > 1e6"
    imported, loaded = peaks_mb(code, str(path))
    assert 75 < loaded - imported < 100 + 40
    flags = ["--steps", "1", "--sample-length", "2", "--corpus", str(text_file), "--device", "cpu"]
    flags += ["--loss-csv", str(tmp_path / "log.csv"), "--runs-dir", str(tmp_path), "--batch-size", "32"]
    # measuring would only repeat that step
    code = """import sys; import gpt; from training.throughput import Throughput
sys.modules["training.run"].measure_throughput = lambda *_: Throughput(1.0, 1.0, 1.0)
gpt.run(gpt.LanguageModel, gpt.Config, sys.argv[1:])"""
    assert 500 < peaks_mb(code, *flags)[1] < 3000
