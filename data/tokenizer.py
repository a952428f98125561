"""Characters to integers and back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError

CHUNK = 1 << 20  # characters handled at a time: what a step needs besides its result stays at a few MB


class CharTokenizer:
    """The distinct characters of a text, sorted; a character's id is its rank.

    Two texts with the same set of characters give the same tokenizer, so `CharTokenizer("".join(t.chars))` is a
    copy of `t`: that string is all a checkpoint has to keep.
    """

    def __init__(self, text: str | Iterable[str]):
        """text: whole, or in parts where it is too long for that."""
        seen = np.zeros(0x110000, dtype=bool)  # one flag per Unicode code point
        for chunk in _chunks(text):
            seen[_code_points(chunk)] = True
        self._codes = np.flatnonzero(seen).astype("<u4")
        self.chars: tuple[str, ...] = tuple(map(chr, self._codes))
        # code point -> id. Any code point past the table reads its last entry, which is always unknown.
        self._ids = np.full(int(self._codes.max(initial=0)) + 2, -1, dtype=np.int32)
        self._ids[self._codes] = np.arange(len(self._codes))

    @property
    def vocab_size(self) -> int:
        return len(self.chars)

    @property
    def id_type(self) -> type:
        """The smallest type that holds an id: uint8 up to 256 characters, else int32."""
        return np.uint8 if self.vocab_size <= 256 else np.int32

    def encode(self, text: str) -> Tensor:
        """Ids of `text`, (len(text),), in `id_type`. Models take int64: call `.long()` on the few that go into one.

        Raises UserError naming the first character that is not in the vocabulary, and its position.
        """
        ids = np.empty(len(text), dtype=self.id_type)
        self.encode_into(ids, text)
        return torch.from_numpy(ids)

    def encode_into(self, ids: np.ndarray, text: str | Iterable[str]) -> None:
        """As `encode`, into an array (n,) that is there already; the text, of n characters, may come in parts.

        Raises ValueError for a text of another length.
        """
        start = 0
        for chunk in _chunks(text):
            found = self._ids.take(_code_points(chunk), mode="clip")
            if found.min() < 0:
                at = int(np.argmax(found < 0))
                raise UserError(
                    f"the character {chunk[at]!r} at position {start + at} is not in the vocabulary of "
                    f"{self.vocab_size} characters; leave it out, or train on a text that has it"
                )
            ids[start : start + len(chunk)] = found
            start += len(chunk)
        if start != len(ids):
            raise ValueError(f"the text has {start} characters, the array {len(ids)}")

    def decode(self, ids: Tensor) -> str:
        """The text of `ids`, shape (n,). Raises IndexError for an id outside 0..vocab_size-1."""
        ids = torch.as_tensor(ids).cpu().numpy()
        if ids.size == 0:
            return ""
        if ids.min() < 0:
            raise IndexError(f"id {ids.min()} is negative")
        return self._codes[ids].tobytes().decode("utf-32-le", "surrogatepass")


def _chunks(text: str | Iterable[str]) -> Iterable[str]:
    return (text[i : i + CHUNK] for i in range(0, len(text), CHUNK)) if isinstance(text, str) else filter(None, text)


def _code_points(text: str) -> np.ndarray:
    """Unsigned (len(text),): Python's own view of a text, without a Python loop over it."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
