"""The text, its tokenizer, its batches, and the log of losses."""

from data.batches import IGNORE, consecutive_windows
from data.corpus import Corpus
from data.errors import UserError
from data.loss_log import LOSS_CSV, LossLog, has_rows, read_log
from data.sources import load_corpus
from data.tokenizer import CharTokenizer

__all__ = [
    "IGNORE",
    "LOSS_CSV",
    "CharTokenizer",
    "Corpus",
    "LossLog",
    "UserError",
    "consecutive_windows",
    "has_rows",
    "load_corpus",
    "read_log",
]
