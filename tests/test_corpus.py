"""Where a text comes from, how it is split, and which of its windows are a batch."""

import hashlib
import http.server
import math
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import bigram
import data.sources
from data import IGNORE, CharTokenizer, Corpus, UserError, consecutive_windows, load_corpus, read_log
from data.batches import split_ids
from training import run

BOTH = pytest.mark.parametrize("sampling", ["random", "epoch"])


def numbered(n_train: int) -> Corpus:
    """A corpus whose ids are their own positions, so that a batch shows where it was taken from."""
    return Corpus("numbers", "0" * 64, CharTokenizer("ab"), torch.arange(n_train), torch.arange(100))


def starts_of(corpus: Corpus, batches: int, batch_size: int, block_size: int, sampling: str, seed: int = 0):
    """Where the windows of the first batches start, in the order in which they come."""
    drawn = [corpus.batch(seed, step, batch_size, block_size, sampling)[0] for step in range(batches)]
    return torch.cat(drawn)[:, 0].tolist()


def test_tiny_shakespeare_is_the_real_one(shakespeare):
    assert shakespeare.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert shakespeare.tokenizer.vocab_size == 65
    assert (len(shakespeare.train), len(shakespeare.val)) == (1_003_854, 111_540)
    assert shakespeare.tokenizer.decode(shakespeare.train[:14]) == "First Citizen:"


# Splits and batches


def test_the_splits_are_the_text(text):
    corpus = Corpus.from_text("words", "0" * 64, text)
    assert corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.val) == text
    assert len(corpus.train) == int(0.9 * len(text))
    held_out = Corpus.from_text("words", "0" * 64, text, holdout=True)
    assert torch.equal(torch.cat([held_out.train, held_out.val]), corpus.train)  # nothing of the validation split
    assert len(held_out.train) == int(0.9 * len(corpus.train))
    assert [len(split) for split in split_ids(torch.empty(100_000_000, dtype=torch.uint8))] == [99_000_000, 1_000_000]


@BOTH
def test_targets_are_inputs_shifted_by_one(sampling):
    idx, targets = numbered(1000).batch(seed=0, step=0, batch_size=16, block_size=8, sampling=sampling)
    assert idx.shape == targets.shape == (16, 8)
    assert idx.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, idx + 1)
    assert torch.equal(idx[:, 1:], idx[:, :-1] + 1)


@BOTH
def test_a_batch_depends_on_seed_and_step_alone(corpus, sampling):
    def draw(seed, step):
        return torch.cat(corpus.batch(seed, step, batch_size=8, block_size=8, sampling=sampling)).tolist()

    first = draw(3, 7)
    torch.manual_seed(99)
    np.random.seed(99)
    for step in range(300):  # past the end of an epoch
        draw(0, step)
    assert draw(3, 7) == first
    assert all(other != first for other in (draw(3, 8), draw(4, 7), draw(7, 3)))


def test_random_sampling_takes_every_window_alike():
    starts = starts_of(numbered(59), 200, batch_size=50, block_size=9, sampling="random", seed=1)
    counts = np.bincount(starts, minlength=50)  # 50 windows
    assert len(counts) == 50
    assert stats.chisquare(counts).pvalue > 1e-4


def test_epoch_sampling_takes_every_window_once_an_epoch():
    """124 windows of 8 an epoch, and 11 characters that are left over."""
    starts = starts_of(numbered(1003), 4 * 20, batch_size=31, block_size=8, sampling="epoch")
    epochs = [starts[i : i + 124] for i in range(0, len(starts), 124)]
    for epoch in epochs:
        assert 0 <= min(epoch) < 11
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 992, 8))  # side by side, each of them once
    assert len({min(epoch) for epoch in epochs}) > 5  # cut elsewhere each time
    orders = {tuple(start - min(epoch) for start in epoch) for epoch in epochs}
    assert len(orders) == 20 and tuple(range(0, 992, 8)) not in orders
    assert starts_of(numbered(1003), 248, batch_size=10, block_size=8, sampling="epoch") == starts  # of the seed alone
    assert starts_of(numbered(1003), 80, 31, 8, "epoch", seed=1) != starts


@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 30))
def test_epoch_sampling_takes_any_text_that_a_window_fits_into(block_size, more, batch_size):
    starts = starts_of(numbered(block_size + more), 10, batch_size, block_size, "epoch")
    assert all(0 <= start < more for start in starts)  # the last target is still of the text
    windows = max(1, (block_size + more) // block_size - 1)
    for i in range(0, len(starts), windows):
        assert len(set(starts[i : i + windows])) == len(starts[i : i + windows])


@given(st.integers(2, 300), st.integers(1, 40))
def test_consecutive_windows_hold_every_character_but_the_first_once(n, block_size):
    inputs, targets = consecutive_windows(torch.arange(n, dtype=torch.int32), block_size)
    assert inputs.shape == targets.shape == (-(-(n - 1) // block_size), block_size)
    counted = targets != IGNORE
    assert targets[counted].tolist() == list(range(1, n))
    assert torch.equal(inputs[counted] + 1, targets[counted])


def test_a_context_has_to_fit_into_both_splits():
    Corpus.from_text("short", "0" * 64, "ab" * 45).check_context(8)  # its validation split has 9 characters
    with pytest.raises(UserError, match="too short"):
        Corpus.from_text("short", "0" * 64, "ab" * 40).check_context(8)


# Files


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"to be\xff or", "not UTF-8 text (byte 0xff at position 5)"),
        ("to be".encode("utf-16"), "not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_refused(raw, words, tmp_path):
    path = tmp_path / "text.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError) as error:
        load_corpus(str(path))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_keeps_its_line_ends_and_its_hash(tmp_path):
    raw = "\ufeffto be\r\nor not 🎭\r".encode()
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    corpus = load_corpus(str(path))
    assert corpus.tokenizer.decode(torch.cat([corpus.train, corpus.val])).encode("utf-8") == raw
    assert corpus.sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("file", "name"),
    [("words.txt", "words.txt"), ("pydoc", "pydoc"), ("tinyshakespeare", "tinyshakespeare"), ("naïve", "naïve")]
    + [(b"a\xffb", "a\\xffb"), ("a\nb", "a\\nb"), ("a\x1b[1mb", "a\\x1b[1mb")] * (sys.platform == "linux"),
)
def test_a_file_is_named_with_its_hash_in_characters_that_any_log_can_hold(file, name, tmp_path):
    path = tmp_path / (file.decode("utf-8", "surrogateescape") if isinstance(file, bytes) else file)
    path.write_bytes(b"to be or not to be")
    digits = hashlib.sha256(b"to be or not to be").hexdigest()[:6]
    assert load_corpus(str(path)).name == f"{name} ({digits})"  # never that of a built-in text


TEXTS = ["a" * 10_000, "\0" * 10_000, "to be 🎭 or not 𐍄𐍉 be 🏳️‍🌈\n" * 500, "".join(map(chr, range(0x4E00, 0x5200)))]


@pytest.mark.parametrize("text", TEXTS, ids=["one character", "zeros", "beyond the BMP", "1,536 characters"])
def test_an_unusual_text_trains(text, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(text.encode())
    places = ["--corpus", str(tmp_path / "text.txt"), "--runs-dir", str(tmp_path), "--loss-csv", str(tmp_path / "log")]
    run(bigram.LanguageModel, bigram.Config, [*places, "--device", "cpu", "--steps", "2", "--sample-length", "20"])
    assert f"{len(set(text))} distinct" in capsys.readouterr().out
    losses = read_log(tmp_path / "log")["val_loss"]
    assert len(losses) == 2 and losses.between(0, 3 + math.log(len(set(text)))).all()


# The network


def page(handler, raw):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(raw)


def half(handler, raw):
    handler.send_response(200)
    handler.send_header("Content-Length", str(2 * len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


def silence_in_the_middle(handler, raw):
    half(handler, raw)
    handler.wfile.flush()
    handler.server.over.wait()


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What load_corpus gives where a server on this machine answers in a given way."""

    def fetch(answer, raw: bytes) -> Corpus:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self, raw)

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
            httpd.over = threading.Event()
            thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
            thread.start()
            try:
                return load_corpus(data_dir=tmp_path, url=f"http://127.0.0.1:{httpd.server_port}/")
            finally:
                httpd.over.set()
                httpd.shutdown()
                thread.join()

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in {"RETRIES": 0, "TIMEOUT": 0.3}.items():
        monkeypatch.setattr(data.sources, name, value)
    return fetch


def test_the_corpus_is_fetched_and_checked(fetched, tmp_path, monkeypatch, text):
    raw = text.encode("utf-8")
    monkeypatch.setattr(data.sources, "SHA256", hashlib.sha256(raw).hexdigest())
    assert fetched(page, raw).name == "tinyshakespeare"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [raw]


@pytest.mark.parametrize("answer", [page, half, silence_in_the_middle])
def test_nothing_stays_of_a_failed_download(answer, fetched, tmp_path, capsys):
    corpus = fetched(answer, b"<html>Please log in</html>")
    assert corpus.name == "pydoc" and len(corpus.train) > 100_000
    assert list(tmp_path.iterdir()) == []
    assert "WARNING: Tiny Shakespeare could not be fetched" in capsys.readouterr().err


def test_a_closed_network_means_the_offline_corpus_and_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.sources, "RETRIES", 0)
    assert load_corpus(data_dir=tmp_path, url="http://127.0.0.1:9/").name == "pydoc"  # a port at which nobody listens
    assert "WARNING: Tiny Shakespeare could not be fetched (ConnectionError" in capsys.readouterr().err


def test_a_file_in_place_is_used_without_the_network(tmp_path):
    (tmp_path / "input.txt").write_text("my own text " * 20, encoding="utf-8")
    corpus = load_corpus(data_dir=tmp_path, url="http://127.0.0.1:9/")
    assert corpus.name.startswith("input.txt (")  # not tinyshakespeare: it is another text
