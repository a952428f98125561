"""Where the text comes from: a file, the network, or, where that is closed, Python's own documentation."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import pooch
import requests

from data.corpus import Corpus
from data.errors import UserError

DATA_DIR = Path(__file__).resolve().parent
TINY_SHAKESPEARE = "tinyshakespeare"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
FILE = "input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
RETRIES = 2
TIMEOUT = 10  # seconds without an answer before an attempt counts as failed


def load_corpus(which: str = "auto", *, data_dir: Path = DATA_DIR, url: str = URL) -> Corpus:
    """The corpus that `--corpus` names.

    "auto": `input.txt` in `data_dir`, else the same file fetched from `url`, else, with a warning, the offline text.
    "pydoc": the offline text. Anything else: the path of a UTF-8 text file.
    Raises UserError for a file that is missing, unreadable, empty or not UTF-8.
    """
    if which == "pydoc":
        return _pydoc()
    if which != "auto":
        return _from_file(Path(which))
    path = data_dir / FILE
    if not path.exists():
        try:
            _fetch(data_dir, url)
        except (requests.RequestException, OSError, ValueError) as reason:  # ValueError: the hash did not match
            first_line = (str(reason).splitlines() or [""])[0]
            print(
                f"WARNING: Tiny Shakespeare could not be fetched ({type(reason).__name__}: {first_line:.120})\n"
                "WARNING: training on Python's own documentation instead. Losses are not comparable; the log says so.\n"
                f"WARNING: to mend it, put input.txt into {data_dir}: {url}{FILE}",
                file=sys.stderr,
            )
            return _pydoc()
    return _from_file(path)


def _fetch(data_dir: Path, url: str) -> None:
    """Download to a temporary file, check the hash, and only then move it to its place; all of it pooch's work."""
    pooch.get_logger().setLevel("WARNING")  # the progress bar says enough
    fetcher = pooch.create(path=data_dir, base_url=url, registry={FILE: f"sha256:{SHA256}"}, retry_if_failed=RETRIES)
    fetcher.fetch(FILE, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT))


def _from_file(path: Path) -> Corpus:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the corpus {path}: {error.strerror}; give --corpus a text file") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {raw[error.start]:#04x} at position {error.start}"
        raise UserError(f"the corpus {path} is not UTF-8 text ({byte}); save it as UTF-8") from None
    sha256 = hashlib.sha256(raw).hexdigest()
    name = TINY_SHAKESPEARE if sha256 == SHA256 else " ".join(path.name.split())  # one line of a CSV
    return Corpus.from_text(name, sha256, text)


def _pydoc() -> Corpus:
    """The help texts that every CPython brings, some half a million characters; each Python version has its own."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise UserError("this Python comes without pydoc_data, the offline corpus; give --corpus a text file") from None
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return Corpus.from_text("pydoc", hashlib.sha256(text.encode("utf-8")).hexdigest(), text)
