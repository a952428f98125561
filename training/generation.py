"""Text from a model, or from a mixture of models, one character at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from data import CharTokenizer, UserError
from training.cache import caches, use_cache
from training.device import shapes_may_grow


def generate(model: nn.Module, idx: Tensor, length: int, block_size: int, **settings) -> Tensor:
    """Continue `idx`, int64 (T,) with T >= 1, by `length` ids: int64 (T + length,), on the CPU.

    The settings are those of `stream`. Meanwhile the model is in evaluation mode.
    """
    was_training = model.training
    model.eval()
    new = list(itertools.islice(stream([(model, block_size)], idx, **settings), length))
    model.train(was_training)
    return torch.cat([idx.cpu(), torch.tensor(new, dtype=torch.long)])


def stream(
    models: Sequence[tuple[nn.Module, int]],
    idx: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Iterator[int]:
    """The ids that continue `idx`, int64 (T,) with T >= 1, one after the other, without end.

    models: each with its block size, in evaluation mode. With several, ids are drawn from the mean of their
    probabilities; each has its own context and its own cache.
    temperature: divides the logits; 0 takes the likeliest id each time. top_k: draw among the k likeliest, 0 for all.
    generator: a CPU generator. Ids are drawn on the CPU, so the same seed gives the same draws on every device.
    cached: let a model that has a `Cache` use it. The text is the same; past the context, only if the cache has no
    window (see `_cached`).
    """
    text = idx.tolist()
    for logits in zip(*(_logits(*each, text, cached) for each in models), strict=True):
        text.append(_draw(mix([each.float().cpu() for each in logits]), temperature, top_k, generator))
        yield text[-1]


def mix(logits: Sequence[Tensor]) -> Tensor:
    """Logits of several models, (..., V) each -> the logarithm of the mean of their probabilities, (..., V).

    The logits of a single model are returned unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.stack(list(logits)).log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def window_start(end: int, model: nn.Module, block_size: int) -> int:
    """The start of a model's window on `end` characters; it holds `block_size` of them at most.

    A full window moves on by one character. With a cache and a position table it moves on by half its length, because
    every move changes the positions of all its characters, and the cache has to be filled again.
    """
    hop = max(1, block_size // 2) if any(cache.window is None for cache in caches(model)) else 1
    too_many = max(0, end - block_size)
    return -(-too_many // hop) * hop


def encode_prompt(tokenizer: CharTokenizer, prompt: str) -> Tensor:
    """int64 (T,), T >= 1. An empty prompt is a line break, or if the vocabulary has none, its first character.

    Raises UserError for a character that the tokenizer does not know.
    """
    if not prompt:
        prompt = "\n" if "\n" in tokenizer.chars else tokenizer.chars[0]
    try:
        return tokenizer.encode(prompt).long()
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None


def _logits(model: nn.Module, block_size: int, text: list[int], cached: bool) -> Iterator[Tensor]:
    """Logits (V,) of what follows `text`; the caller adds an id to it before it asks for the next."""
    cached = bool(cached and caches(model)) and shapes_may_grow(next(model.parameters()).device)
    return (_cached if cached else _recomputed)(model, text, block_size)


@torch.no_grad()
def _recomputed(model: nn.Module, text: list[int], block_size: int) -> Iterator[Tensor]:
    """The logits, recomputed for the whole window each time.

    The model always gets (1, block_size) ids, padded with zeros on the right. The padding does not change a causal
    model's logits at the last real id, and a device that keeps memory for each new shape gets only one shape.
    """
    device = next(model.parameters()).device
    while True:
        seen = text[window_start(len(text), model, block_size) :]
        window = torch.zeros(1, block_size, dtype=torch.long)
        window[0, : len(seen)] = torch.tensor(seen)
        yield model(window.to(device))[0, len(seen) - 1]


@torch.no_grad()
def _cached(model: nn.Module, text: list[int], block_size: int) -> Iterator[Tensor]:
    """The same with a cache: the model gets each character once, and half a window again when the window moves on.

    If the cache has its own window, nothing is computed twice. Such a model uses more than the window: the cached keys
    and values of a character depend on the characters before it, back to its own window's start.
    """
    device = next(model.parameters()).device
    endless = all(cache.window is not None for cache in caches(model))
    while True:
        start = done = window_start(len(text), model, block_size)
        memory = {}
        while endless or window_start(len(text), model, block_size) == start:
            new, done = torch.tensor([text[done:]], device=device), len(text)
            with use_cache(model, memory):
                logits = model(new)[0, -1]
            yield logits


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    # subtract the largest logit, so that no small temperature makes a logit infinite
    probabilities = ((logits - logits.max()).double() / temperature).softmax(dim=0)
    return int(torch.multinomial(probabilities, num_samples=1, generator=generator))
