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
    to others, what is kept turns wrong when the window moves.
    """

    def __init__(self, window: int | None = None):
        super().__init__()
        self.window = window
        self.remembers = False
        self.kept: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """The characters that are remembered."""
        return 0 if self.kept is None else self.kept[0].shape[2]

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v: (B, H, T, D) -> (B, H, S, D) each, where S counts the T characters and those before them."""
        if not self.remembers:
            return k, v
        if self.kept is not None:
            k, v = (torch.cat([before, now], dim=2) for before, now in zip(self.kept, (k, v), strict=True))
        if self.window is not None:
            k, v = k[:, :, -self.window :], v[:, :, -self.window :]
        self.kept = k, v
        return k, v


def caches(model: nn.Module) -> list[Cache]:
    return [module for module in model.modules() if isinstance(module, Cache)]


@contextlib.contextmanager
def remembering(model: nn.Module, memory: dict[Cache, tuple[Tensor, Tensor] | None]) -> Iterator[None]:
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
