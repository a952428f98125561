"""Where the text comes from: a file, the network or, without a network, Python's own documentation."""

from __future__ import annotations

import codecs
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data.corpus import Corpus
from data.errors import UserError
from data.files import printable
from data.tokenizer import CharTokenizer

DATA_DIR = Path(__file__).resolve().parent
TINY_SHAKESPEARE = "tinyshakespeare"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
FILE = "input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PIECE = 1 << 20  # bytes read at a time
RETRIES = 2
TIMEOUT = 10  # seconds without an answer before an attempt counts as failed


def load_corpus(which: str = "auto", holdout: bool = False, *, data_dir: Path = DATA_DIR, url: str = URL) -> Corpus:
    """The corpus that `--corpus` names.

    "auto": `input.txt` in `data_dir`, else the same file fetched from `url`, else, with a warning, the offline text.
    "pydoc": the offline text. Anything else: the path of a UTF-8 text file.
    holdout: leave the validation split unread; the last tenth of the train split takes its place (`split_ids`).
    Raises UserError for a file that is missing, unreadable, empty or not UTF-8.
    """
    if which == "pydoc":
        return _pydoc(holdout)
    if which != "auto":
        return _from_file(Path(which), holdout)
    path = data_dir / FILE
    if not path.exists():
        try:
            _fetch(data_dir, url)
        except (OSError, ValueError) as reason:  # ValueError: the hash did not match
            first_line = (str(reason).splitlines() or [""])[0]
            print(
                f"WARNING: Tiny Shakespeare could not be fetched ({type(reason).__name__}: {first_line:.120})\n"
                "WARNING: training on Python's own documentation instead. Losses are not comparable; the log says so.\n"
                f"WARNING: for Tiny Shakespeare, put input.txt into {data_dir}: {url}{FILE}",
                file=sys.stderr,
            )
            return _pydoc(holdout)
    return _from_file(path, holdout)


def _fetch(data_dir: Path, url: str) -> None:
    """Download the text with pooch: to a temporary file, which is moved when its hash is right."""
    import pooch  # here, because only a download needs it

    pooch.get_logger().setLevel("WARNING")  # the progress bar says enough
    fetcher = pooch.create(path=data_dir, base_url=url, registry={FILE: f"sha256:{SHA256}"}, retry_if_failed=RETRIES)
    fetcher.fetch(FILE, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT))


def _from_file(path: Path, holdout: bool) -> Corpus:
    """Read twice, in pieces, once for the vocabulary and once for the ids, so that memory holds the ids alone."""
    digest, length = hashlib.sha256(), 0

    def measured() -> Iterator[str]:
        nonlocal length
        for piece in _pieces(path, digest):
            length += len(piece)
            yield piece

    tokenizer = CharTokenizer(measured())
    if not length:
        raise UserError(f"the corpus {path} is empty; give --corpus a file with text in it")
    ids = np.empty(length, tokenizer.id_type)
    try:
        tokenizer.encode_into(ids, _pieces(path))
    except ValueError:  # a character or a length that it did not have the first time
        raise UserError(f"the corpus {path} changed while it was read; start again") from None
    sha256 = digest.hexdigest()
    name = TINY_SHAKESPEARE if sha256 == SHA256 else f"{_name(path)} ({sha256[:6]})"
    return Corpus.from_ids(name, sha256, tokenizer, torch.from_numpy(ids), holdout)


def _name(path: Path) -> str:
    """A file's name as text for any CSV and terminal: undecodable bytes and control characters escaped."""
    return printable(os.fsencode(path.name).decode("utf-8", "backslashreplace"))


def _pieces(path: Path, digest=None) -> Iterator[str]:
    """The text of a UTF-8 file, line breaks as they are, a piece at a time; `digest` gets to see the bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0  # of the first byte not decoded yet
    try:
        with path.open("rb") as file:
            while raw := file.read(PIECE):
                if digest:
                    digest.update(raw)
                yield decoder.decode(raw)
                position = file.tell() - len(decoder.getstate()[0])
            yield decoder.decode(b"", final=True)
    except OSError as error:
        raise UserError(f"cannot read the corpus {path}: {error.strerror}; give --corpus a text file") from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at position {position + error.start}"
        raise UserError(f"the corpus {path} is not UTF-8 text ({byte}); save it as UTF-8") from None


def _pydoc(holdout: bool) -> Corpus:
    """The help texts that every CPython brings, some half a million characters; each Python version has its own."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise UserError("this Python comes without pydoc_data, the offline corpus; give --corpus a text file") from None
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return Corpus.from_text("pydoc", hashlib.sha256(text.encode("utf-8")).hexdigest(), text, holdout)
