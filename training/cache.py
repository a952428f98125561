"""The key-value cache, so that generation does not recompute earlier characters for each new one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

Memory = dict["Cache", tuple[Tensor, ...] | None]


class Cache(nn.Module):
    """Returns the given keys and values; inside `use_cache`, appended to those of all earlier calls.

    In a causal model, later characters do not change the keys and values of earlier ones, so these stay valid. window:
    keep this many characters. It is only for models that use the distances between characters, not their positions; for
    others, the kept values become wrong when the window moves. dim: the dimension of time; a cache may keep other
    tensors per character than keys and values (B, H, T, D).
    """

    def __init__(self, window: int | None = None, dim: int = 2):
        super().__init__()
        self.window = window
        self.dim = dim
        self.in_use = False
        self.kept: tuple[Tensor, ...] | None = None

    @property
    def length(self) -> int:
        """How many characters are kept."""
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
    """Inside, `model` continues the text whose keys and values are in `memory`, and adds to them; {} is a new text.

    Afterwards the model is as before: several texts may be generated in turn, each with its own memory.
    """
    try:
        for cache in caches(model):
            cache.in_use, cache.kept = True, memory.get(cache)
        yield
    finally:
        for cache in caches(model):
            memory[cache] = cache.kept
            cache.in_use, cache.kept = False, None
