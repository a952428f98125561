import contextlib
import hashlib
import http.server
import math
import threading

import numpy as np
import pytest
import requests
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import bigram
import data.sources
from data import IGNORE, CharTokenizer, Corpus, UserError, consecutive_windows, load_corpus, read_log
from training import run


def numbered(n_train: int, n_val: int = 100) -> Corpus:
    """A corpus whose ids are their own positions, so that a batch shows where it was taken from."""
    return Corpus("numbers", "0" * 64, CharTokenizer("ab"), torch.arange(n_train), torch.arange(n_val))


def test_tiny_shakespeare_is_the_real_one(shakespeare):
    assert shakespeare.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert shakespeare.tokenizer.vocab_size == 65
    assert (len(shakespeare.train), len(shakespeare.val)) == (1_003_854, 111_540)
    assert shakespeare.tokenizer.decode(shakespeare.train[:14]) == "First Citizen:"


def test_the_splits_are_the_text(text):
    corpus = Corpus.from_text("words", "0" * 64, text)
    assert corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.val) == text
    assert len(corpus.train) == int(0.9 * len(text))


def test_targets_are_inputs_shifted_by_one():
    idx, targets = numbered(1000).batch(seed=0, step=0, batch_size=16, block_size=8)
    assert idx.shape == targets.shape == (16, 8)
    assert idx.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, idx + 1)
    assert torch.equal(idx[:, 1:], idx[:, :-1] + 1)


def test_a_batch_depends_on_seed_and_step_alone(corpus):
    def draw(seed, step):
        return torch.cat(corpus.batch(seed, step, batch_size=8, block_size=8)).tolist()

    first = draw(3, 7)
    torch.manual_seed(99)
    np.random.seed(99)
    torch.rand(5)
    draw(0, 0)
    assert draw(3, 7) == first
    others = [draw(3, 8), draw(4, 7), draw(7, 3)]
    assert all(other != first for other in others)


def test_batches_take_every_window_alike():
    corpus, block_size = numbered(59), 9  # 50 windows
    starts = torch.cat([corpus.batch(1, step, 50, block_size)[0][:, 0] for step in range(200)])
    counts = torch.bincount(starts, minlength=50)
    assert len(counts) == 50
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def starts_of(corpus: Corpus, batches: int, batch_size: int, block_size: int, seed: int = 0) -> list[int]:
    """Where the windows of the first batches without replacement start, in the order in which they come."""
    drawn = [corpus.batch(seed, step, batch_size, block_size, without_replacement=True)[0] for step in range(batches)]
    return torch.cat(drawn)[:, 0].tolist()


def test_without_replacement_the_text_is_read_before_any_of_it_comes_again():
    corpus = numbered(1003)  # 124 windows of 8 a reading, and 11 characters left over
    idx, targets = corpus.batch(seed=0, step=0, batch_size=31, block_size=8, without_replacement=True)
    assert idx.shape == targets.shape == (31, 8)
    assert torch.equal(targets, idx + 1)
    starts = starts_of(corpus, batches=4 * 20, batch_size=31, block_size=8)
    readings = [starts[i : i + 124] for i in range(0, len(starts), 124)]
    for reading in readings:
        first = min(reading)
        assert 0 <= first < 11
        assert sorted(reading) == list(range(first, first + 992, 8))  # side by side, each of them once
    assert len({min(reading) for reading in readings}) > 5  # cut elsewhere each time
    orders = {tuple(start - min(reading) for start in reading) for reading in readings}
    assert len(orders) == 20 and tuple(range(0, 992, 8)) not in orders


def test_without_replacement_the_order_depends_on_the_seed_alone():
    corpus = numbered(1003)
    whole = starts_of(corpus, batches=60, batch_size=7, block_size=8)  # in batches that lie across two readings too
    assert starts_of(corpus, batches=42, batch_size=10, block_size=8) == whole
    assert starts_of(corpus, batches=60, batch_size=7, block_size=8, seed=1) != whole
    torch.manual_seed(99)
    np.random.seed(99)
    late = corpus.batch(0, 59, 7, 8, without_replacement=True)[0]
    assert late[:, 0].tolist() == whole[-7:]


@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 30))
def test_without_replacement_every_text_that_fits_will_do(block_size, more, batch_size):
    starts = starts_of(numbered(block_size + more), batches=10, batch_size=batch_size, block_size=block_size)
    assert all(0 <= start < more for start in starts)  # the last target is still of the text
    windows = max(1, (block_size + more) // block_size - 1)
    for i in range(0, len(starts), windows):
        assert len(set(starts[i : i + windows])) == len(starts[i : i + windows])


@given(st.integers(2, 300), st.integers(1, 40))
def test_windows_hold_every_character_but_the_first_once(n, block_size):
    ids = torch.arange(n, dtype=torch.int32)
    inputs, targets = consecutive_windows(ids, block_size)
    assert inputs.shape == targets.shape == (-(-(n - 1) // block_size), block_size)
    counted = targets != IGNORE
    assert targets[counted].tolist() == list(range(1, n))
    assert torch.equal(inputs[counted] + 1, targets[counted])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"to be\xff or", "not UTF-8 text (byte 0xff at position 5)"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_refused(raw, words, tmp_path):
    path = tmp_path / "text.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError) as error:
        load_corpus(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("length", "fits"), [(80, False), (81, True)])  # the validation split has 8 or 9 of these
def test_a_context_has_to_fit_into_both_splits(length, fits):
    corpus = Corpus.from_text("short", "0" * 64, "ab" * 45 if fits else "ab" * 40)
    if fits:
        corpus.check_context(8)
    else:
        with pytest.raises(UserError, match="too short"):
            corpus.check_context(8)


def test_a_file_keeps_its_line_ends_and_its_hash(tmp_path):
    raw = "﻿to be\r\nor not 🎭\r".encode()
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    corpus = load_corpus(str(path))
    assert corpus.tokenizer.decode(torch.cat([corpus.train, corpus.val])).encode("utf-8") == raw
    assert corpus.sha256 == hashlib.sha256(raw).hexdigest()
    assert corpus.name == "text.txt"


def test_the_offline_corpus_is_there_and_named():
    corpus = load_corpus("pydoc")
    assert corpus.name == "pydoc"
    assert len(corpus.train) > 100_000


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: what it serves is in `server.folder`, its address in `server.url`."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        httpd.folder, httpd.url = folder, f"http://127.0.0.1:{httpd.server_port}/"
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(data.sources, "RETRIES", 0)


def test_the_corpus_is_fetched_and_checked(server, no_proxy, tmp_path, monkeypatch, text):
    raw = text.encode("utf-8")
    (server.folder / "input.txt").write_bytes(raw)
    monkeypatch.setattr(data.sources, "SHA256", hashlib.sha256(raw).hexdigest())
    corpus = load_corpus(data_dir=tmp_path / "data", url=server.url)
    assert corpus.name == "tinyshakespeare"
    assert (tmp_path / "data" / "input.txt").read_bytes() == raw
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["input.txt"]


def test_a_wrong_text_is_not_kept(server, no_proxy, tmp_path, capsys):
    (server.folder / "input.txt").write_text("<html>Please log in</html>", encoding="utf-8")
    corpus = load_corpus(data_dir=tmp_path / "data", url=server.url)
    assert corpus.name == "pydoc"
    assert list((tmp_path / "data").iterdir()) == []
    assert "WARNING" in capsys.readouterr().err


def half(handler, raw):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw[: len(raw) // 2])


def page(handler, raw):
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    handler.wfile.write(b"<html>Please log in</html>")


def failure(handler, raw):
    handler.send_error(503)


def silence(handler, raw):
    handler.server.over.wait()


def silence_in_the_middle(handler, raw):
    half(handler, raw)
    handler.wfile.flush()
    handler.server.over.wait()


def a_trickle(handler, raw):
    """Something, all the time, and never the end."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):  # the other side hangs up
        while not handler.server.over.is_set():
            handler.wfile.write(raw)


@pytest.mark.parametrize("answer", [half, page, failure, silence, silence_in_the_middle, a_trickle])
def test_nothing_wrong_stays_of_a_failed_download(answer, no_proxy, tmp_path, monkeypatch, capsys, text):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self, text.encode("utf-8"))

        def log_message(self, *args):
            pass

    monkeypatch.setattr(data.sources, "RETRIES", 1)
    monkeypatch.setattr(data.sources, "TIMEOUT", 0.5)
    monkeypatch.setattr(data.sources, "LIMIT", 1.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.over = threading.Event()
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            corpus = load_corpus(data_dir=tmp_path, url=f"http://127.0.0.1:{httpd.server_port}/")
        finally:
            httpd.over.set()
            httpd.shutdown()
            thread.join()
    assert corpus.name == "pydoc"
    assert list(tmp_path.iterdir()) == []
    assert "could not be fetched" in capsys.readouterr().err


HOSTILE = {
    "random bytes": (np.random.default_rng(0).bytes(10_000_000), "is not UTF-8 text"),
    "one character": (b"a" * 10_000_000, None),
    "line breaks": (b"\n" * 100_000, None),
    "a BOM": (b"\xef\xbb\xbf" + b"to be or not to be\n" * 500, None),
    "CRLF": (b"to be\r\nor not to be\r\n" * 500, None),
    "beyond the BMP": (("to be 🎭 or not 𐍄𐍉 be 🏳️‍🌈\n" * 500).encode(), None),
    "UTF-16": (("to be or not to be\n" * 500).encode("utf-16"), "is not UTF-8 text"),
    "zeros": (b"\0" * 10_000, None),
    "1,000 characters": ("".join(map(chr, range(0x4E00, 0x4E00 + 1_000))).encode(), None),
}


@pytest.mark.parametrize(("raw", "refusal"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_trains_or_is_refused_in_one_line(raw, refusal, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    n_characters = None if refusal else len(set(raw.decode("utf-8")))
    places = ["--corpus", str(path), "--runs-dir", str(tmp_path / "runs"), "--loss-csv", str(tmp_path / "log.csv")]
    arguments = [*places, "--device", "cpu", "--steps", "2", "--sample-length", "20"]
    if refusal:
        with pytest.raises(SystemExit) as stop:
            run(bigram.LanguageModel, bigram.Config, arguments)
        said = capsys.readouterr()
        assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
        assert refusal in said.err and not (tmp_path / "log.csv").exists()
        return
    run(bigram.LanguageModel, bigram.Config, arguments)
    assert f"{n_characters} distinct" in capsys.readouterr().out
    losses = read_log(tmp_path / "log.csv")["val_loss"]
    assert len(losses) == 2 and losses.between(0, 3 + math.log(n_characters)).all()
    if n_characters == 1:
        assert (losses == 0).all()  # there is nothing to be wrong about


def test_a_closed_network_means_the_offline_corpus_and_a_warning(tmp_path, no_proxy, monkeypatch, capsys):
    def closed(*args, **kwargs):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", closed)
    assert load_corpus(data_dir=tmp_path).name == "pydoc"
    assert "no route to host" in capsys.readouterr().err


def test_a_file_in_place_is_used_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "get", None)
    (tmp_path / "input.txt").write_text("my own text " * 20, encoding="utf-8")
    corpus = load_corpus(data_dir=tmp_path)
    assert corpus.name == "input.txt"  # not tinyshakespeare: it is another text
