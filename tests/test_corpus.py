"""How a text is loaded and split, and which of its windows a batch has."""

import hashlib
import http.server
import threading

import pytest
import torch

import data.sources
from data import CharTokenizer, Corpus, load_corpus
from data.batches import split_ids


def numbered(n_train: int) -> Corpus:
    """A corpus whose ids are their own positions, so that a batch shows where it was taken from."""
    return Corpus("numbers", "0" * 64, CharTokenizer("ab"), torch.arange(n_train), torch.arange(100))


def starts_of(corpus: Corpus, batches: int, batch_size: int, block_size: int, sampling: str, seed: int = 0):
    """Where the windows of the first batches start, in the order in which they come."""
    drawn = [corpus.batch(seed, step, batch_size, block_size, sampling)[0] for step in range(batches)]
    return torch.cat(drawn)[:, 0].tolist()


def test_tiny_shakespeare_has_its_known_hash_alphabet_and_splits(shakespeare):
    assert shakespeare.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert shakespeare.tokenizer.vocab_size == 65
    assert (len(shakespeare.train), len(shakespeare.val)) == (1_003_854, 111_540)
    assert shakespeare.tokenizer.decode(shakespeare.train[:14]) == "First Citizen:"


# Splits and batches


def test_the_splits_together_are_the_text(text):
    corpus = Corpus.from_text("words", "0" * 64, text)
    assert corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.val) == text
    assert len(corpus.train) == int(0.9 * len(text))
    held_out = Corpus.from_text("words", "0" * 64, text, holdout=True)
    assert torch.equal(torch.cat([held_out.train, held_out.val]), corpus.train)  # nothing of the validation split
    assert len(held_out.train) == int(0.9 * len(corpus.train))
    assert [len(split) for split in split_ids(torch.empty(100_000_000, dtype=torch.uint8))] == [99_000_000, 1_000_000]


@pytest.mark.parametrize("sampling", ["random", "epoch"])
def test_a_batch_depends_on_seed_and_step_alone_and_its_targets_are_the_next_characters(corpus, sampling):
    def draw(seed, step):
        return torch.cat(corpus.batch(seed, step, batch_size=8, block_size=8, sampling=sampling)).tolist()

    first = draw(3, 7)
    for step in range(300):  # past the end of an epoch
        draw(0, step)
    assert draw(3, 7) == first
    assert all(other != first for other in (draw(3, 8), draw(4, 7), draw(7, 3)))
    idx, targets = numbered(1000).batch(seed=0, step=0, batch_size=16, block_size=8, sampling=sampling)
    assert idx.shape == (16, 8) and torch.equal(targets, idx + 1) and torch.equal(idx[:, 1:], idx[:, :-1] + 1)


def test_epoch_sampling_draws_every_window_once_an_epoch():
    """An epoch has 124 windows of 8 characters; 11 characters are left over."""
    starts = starts_of(numbered(1003), 4 * 20, batch_size=31, block_size=8, sampling="epoch")
    epochs = [starts[i : i + 124] for i in range(0, len(starts), 124)]
    for epoch in epochs:
        assert 0 <= min(epoch) < 11
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 992, 8))  # adjacent windows, each of them once
    assert len({min(epoch) for epoch in epochs}) > 5  # each epoch starts at another offset
    orders = {tuple(start - min(epoch) for start in epoch) for epoch in epochs}
    assert len(orders) == 20 and tuple(range(0, 992, 8)) not in orders
    assert starts_of(numbered(1003), 248, batch_size=10, block_size=8, sampling="epoch") == starts  # of any batch size
    assert starts_of(numbered(1003), 80, 31, 8, "epoch", seed=1) != starts


# Files and the network


@pytest.mark.parametrize("file", ["tinyshakespeare", "naïve"])
def test_a_file_is_named_with_its_hash(file, tmp_path):
    (tmp_path / file).write_bytes(b"to be or not to be")
    digits = hashlib.sha256(b"to be or not to be").hexdigest()[:6]
    assert load_corpus(str(tmp_path / file)).name == f"{file} ({digits})"  # never the name of a built-in text


@pytest.fixture
def server(monkeypatch, text):
    """The address of a server on this machine that answers with the text."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode("utf-8"))

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def test_the_corpus_is_fetched_and_checked(server, tmp_path, monkeypatch, text, capsys):
    corpus = load_corpus(data_dir=tmp_path, url=server)  # another text, as from a network that asks for a login
    assert corpus.name == "pydoc" and len(corpus.train) > 100_000
    assert "WARNING: Tiny Shakespeare could not be fetched" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(data.sources, "SHA256", hashlib.sha256(text.encode("utf-8")).hexdigest())
    assert load_corpus(data_dir=tmp_path, url=server).name == "tinyshakespeare"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [text.encode("utf-8")]


def test_an_existing_file_is_used_without_the_network(tmp_path):
    (tmp_path / "input.txt").write_text("my own text " * 20, encoding="utf-8")
    corpus = load_corpus(data_dir=tmp_path, url="http://127.0.0.1:9/")
    assert corpus.name.startswith("input.txt (")  # not tinyshakespeare: it is another text
