"""A text as two splits of token ids on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.batches import batch_windows, split_ids
from data.errors import UserError
from data.tokenizer import CharTokenizer


@dataclass(frozen=True)
class Corpus:
    """Token ids of a text, on one device.

    name, sha256: what the log records. train, val: ids, (n,), in the tokenizer's small integer type.
    """

    name: str
    sha256: str
    tokenizer: CharTokenizer
    train: Tensor
    val: Tensor

    @classmethod
    def from_text(cls, name: str, sha256: str, text: str, holdout: bool = False) -> Corpus:
        """Encode `text` and split it. Raises UserError for an empty text."""
        if not text:
            raise UserError(f"the corpus {name} is empty; give --corpus a file with text in it")
        tokenizer = CharTokenizer(text)
        return cls.from_ids(name, sha256, tokenizer, tokenizer.encode(text), holdout)

    @classmethod
    def from_ids(cls, name: str, sha256: str, tokenizer: CharTokenizer, ids: Tensor, holdout: bool = False) -> Corpus:
        """`ids` (n,), split as `split_ids` says."""
        train, val = split_ids(ids, holdout)
        return cls(name, sha256, tokenizer, train, val)

    def to(self, device: torch.device) -> Corpus:
        """The same corpus with its ids on `device`: moved once, not batch by batch."""
        return replace(self, train=self.train.to(device), val=self.val.to(device))

    def check_context(self, block_size: int) -> None:
        """Raises UserError if a split cannot hold one window: `block_size` characters and the one after."""
        shortest = min(len(self.train), len(self.val))
        if shortest <= block_size:
            raise UserError(
                f"the corpus {self.name} is too short: its smaller split has {shortest} characters, a context of "
                f"{block_size} needs at least {block_size + 1}; use a longer text or a smaller --block-size"
            )

    def batch(
        self, seed: int, step: int, batch_size: int, block_size: int, sampling: str = "random"
    ) -> tuple[Tensor, Tensor]:
        """A batch of the train split: inputs and, one character on, targets, int64 (B, T) each.

        It depends on (seed, step) alone, and is the same on every device.
        """
        windows = batch_windows(len(self.train), seed, step, batch_size, block_size, sampling)  # (B, T+1)
        if cuda := self.train.is_cuda:
            windows = windows.pin_memory()  # the CPU does not wait for a copy from pinned memory
        ids = self.train[windows.to(self.train.device, non_blocking=cuda)].long()
        return ids[:, :-1], ids[:, 1:]
