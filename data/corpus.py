"""A text as two splits of token ids, its training batches and its evaluation windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.tokenizer import CharTokenizer

TRAIN_SHARE = 0.9  # the first 90% is for training, the rest for validation
LONGEST_VAL = 1_000_000  # characters, but at most so many: evaluating a tenth of a gigabyte would take hours
IGNORE = -100  # a target that counts for nothing: cross_entropy's own default


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
    def from_text(cls, name: str, sha256: str, text: str) -> Corpus:
        """Encode `text` and split it by position. Raises UserError for an empty text."""
        if not text:
            raise UserError(f"the corpus {name} is empty; give --corpus a file with text in it")
        tokenizer = CharTokenizer(text)
        return cls.from_ids(name, sha256, tokenizer, tokenizer.encode(text))

    @classmethod
    def from_ids(cls, name: str, sha256: str, tokenizer: CharTokenizer, ids: Tensor) -> Corpus:
        """Split `ids`, (n,): the last tenth, up to LONGEST_VAL of them, is for validation, all before for training."""
        split = max(int(TRAIN_SHARE * len(ids)), len(ids) - LONGEST_VAL)
        return cls(name, sha256, tokenizer, train=ids[:split], val=ids[split:])

    def to(self, device: torch.device) -> Corpus:
        """The same corpus with its ids on `device`: moved once, so that no batch has to be."""
        return Corpus(self.name, self.sha256, self.tokenizer, self.train.to(device), self.val.to(device))

    def check_context(self, block_size: int) -> None:
        """Raises UserError where a split cannot hold one window: `block_size` characters and the one after."""
        shortest = min(len(self.train), len(self.val))
        if shortest <= block_size:
            raise UserError(
                f"the corpus {self.name} is too short: its smaller split has {shortest} characters, a context of "
                f"{block_size} needs at least {block_size + 1}; use a longer text or a smaller --block-size"
            )

    def batch(
        self, seed: int, step: int, batch_size: int, block_size: int, without_replacement: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Random windows of the train split: inputs and, one character on, targets, int64 (B, T) each.

        They depend on (seed, step) alone, whatever else was drawn before, and are the same on every device. Without
        replacement, no window comes again before all of the split has been read.
        """
        if without_replacement:
            starts = in_turn(len(self.train), seed, step, batch_size, block_size)
        else:
            # numpy's SeedSequence mixes the pair, so that neighbouring steps and seeds share nothing
            rng = np.random.default_rng((seed, step))
            starts = rng.integers(len(self.train) - block_size, size=batch_size)
        windows = torch.from_numpy(starts)[:, None] + torch.arange(block_size + 1)  # (B, T+1) positions in the text
        if cuda := self.train.is_cuda:
            windows = windows.pin_memory()  # a copy from there is the only one that the CPU need not wait for
        ids = self.train[windows.to(self.train.device, non_blocking=cuda)].long()
        return ids[:, :-1], ids[:, 1:]


def in_turn(length: int, seed: int, step: int, batch_size: int, block_size: int) -> np.ndarray:
    """Where the windows of batch number `step` start, (B,): batch by batch through one `reading` after the other."""
    windows = len(reading(length, seed, 0, block_size))
    numbers = range(step * batch_size, (step + 1) * batch_size)  # of these windows, counted from the first batch's
    return np.array([reading(length, seed, n // windows, block_size)[n % windows] for n in numbers])


@lru_cache(maxsize=3)  # 8 bytes a window each; a batch asks for its own reading and perhaps the next, and for the first
def reading(length: int, seed: int, number: int, block_size: int) -> np.ndarray:
    """Where the windows of one reading of `length` characters start, (N,), in the order in which they are read.

    They lie side by side, in an order that is shuffled. The first starts somewhere else in each reading, so that what
    lay on two sides of a cut comes together in another; for that, up to two windows' worth at the text's ends is left
    out, in each reading another part of it.
    """
    windows = max(1, length // block_size - 1)
    rng = np.random.default_rng((seed, number, windows))  # three numbers, where random windows have two
    first = rng.integers(length - windows * block_size)
    return first + block_size * rng.permutation(windows)


def consecutive_windows(ids: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """All of `ids` (n,) cut into windows of `block_size`: inputs and targets, int64 (ceil((n-1) / T), T) each.

    Every id but the first is a target exactly once. What the last window has too much is filled with zeros whose
    targets are IGNORE: the shape stays fixed, and a causal model's earlier logits do not see the filling.
    """
    n = len(ids) - 1
    filling = -n % block_size
    inputs = torch.nn.functional.pad(ids[:-1].long(), (0, filling))
    targets = torch.nn.functional.pad(ids[1:].long(), (0, filling), value=IGNORE)
    return inputs.view(-1, block_size), targets.view(-1, block_size)
