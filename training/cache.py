"""What a model need not compute twice while it writes a text: the keys and values of the characters before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Cache(nn.Module):
    """Hands on the keys and values that it gets; while `remembering`, behind those of all the calls before.

    In a causal model a later character changes nothing about an earlier one, so its keys and values stay right.
    window: keep those of so many characters. This is for models to which only the distance between characters counts;
    to others, what is kept turns wrong when the window moves. dim: along which the characters of a tensor follow one
    another; besides keys and values, (B, H, T, D), anything else may be kept that belongs to a character.
    """

    def __init__(self, window: int | None = None, dim: int = 2):
        super().__init__()
        self.window = window
        self.dim = dim
        self.remembers = False
        self.kept: tuple[Tensor, ...] | None = None

    @property
    def length(self) -> int:
        """The characters that are remembered."""
        return 0 if self.kept is None else self.kept[0].shape[self.dim]

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """parts: (B, H, T, D) -> (B, H, S, D) each, where S counts the T characters and those before them."""
        if not self.remembers:
            return parts
        if self.kept is not None:
            parts = tuple(torch.cat(pair, dim=self.dim) for pair in zip(self.kept, parts, strict=True))
        length = parts[0].shape[self.dim]
        if self.window is not None and length > self.window:
            parts = tuple(part.narrow(self.dim, length - self.window, self.window) for part in parts)
        self.kept = parts
        return parts


def caches(model: nn.Module) -> list[Cache]:
    return [module for module in model.modules() if isinstance(module, Cache)]


@contextlib.contextmanager
def remembering(model: nn.Module, memory: dict[Cache, tuple[Tensor, ...] | None]) -> Iterator[None]:
    """While inside, `model` goes on with the text whose keys and values `memory` holds, and adds to them; {} is none.

    Outside, the model is as it was: any number of texts may be written in turn, each with a memory of its own.
    """
    try:
        for cache in caches(model):
            cache.remembers, cache.kept = True, memory.get(cache)
        yield
    finally:
        for cache in caches(model):
            memory[cache] = cache.kept
            cache.remembers, cache.kept = False, None
