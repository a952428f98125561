"""The key-value cache: what a model need not compute again for each character that it generates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

Memory = dict["Cache", tuple[Tensor, ...] | None]


class Cache(nn.Module):
    """Returns the keys and values that it gets; inside `use_cache`, appended to those of all the calls before.

    In a causal model a later character changes nothing about an earlier one, so its keys and values stay right.
    window: keep those of so many characters. This is for models to which only the distance between characters matters;
    to others, what is kept becomes wrong when the window moves. dim: the dimension of time; besides keys and values,
    (B, H, T, D), anything else that belongs to a character may be kept.
    """

    def __init__(self, window: int | None = None, dim: int = 2):
        super().__init__()
        self.window = window
        self.dim = dim
        self.in_use = False
        self.kept: tuple[Tensor, ...] | None = None

    @property
    def length(self) -> int:
        """The characters that are kept."""
        return 0 if self.kept is None else self.kept[0].shape[self.dim]

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """parts: (B, H, T, D) -> (B, H, S, D) each, where S counts the T characters and those before them."""
        if not self.in_use:
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
def use_cache(model: nn.Module, memory: Memory) -> Iterator[None]:
    """While inside, `model` continues the text whose keys and values `memory` holds, and adds to them; {} is none.

    Outside, the model is as it was: any number of texts may be generated in turn, each with a memory of its own.
    """
    try:
        for cache in caches(model):
            cache.in_use, cache.kept = True, memory.get(cache)
        yield
    finally:
        for cache in caches(model):
            memory[cache] = cache.kept
            cache.in_use, cache.kept = False, None
