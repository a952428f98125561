"""Text from a model, or from several as one, a character at a time."""

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

    The settings are those of `stream`. The model is in evaluation mode meanwhile.
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

    models: each with its block size, in evaluation mode. Of several, ids are drawn from the mean of their
    probabilities. Each sees its own context, and uses its own cache, as it would alone.
    temperature: divides the logits; 0 takes the likeliest id each time. top_k: draw among the k likeliest, 0 for all.
    generator: a CPU generator, which alone decides the draws: they are made on the CPU, where the same seed means the
    same draws whatever the model runs on. cached: let a model that has a `Cache` use it; the text is the same, but past
    the context only where that cache has no window of its own (see `_cached`).
    """
    text = idx.tolist()
    for logits in zip(*(_logits(*each, text, cached) for each in models), strict=True):
        text.append(_draw(mix([each.float().cpu() for each in logits]), temperature, top_k, generator))
        yield text[-1]


def mix(logits: Sequence[Tensor]) -> Tensor:
    """Logits of several models, (..., V) each -> the logarithm of the mean of their probabilities, (..., V).

    One model's logits stay as they are, to the bit.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.stack(list(logits)).log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def window_start(end: int, model: nn.Module, block_size: int) -> int:
    """Where the characters begin that a model sees of `end` ones, `block_size` of them at the most.

    A window that is full moves on by one character. Of a model with a cache it moves on by half its length, where every
    move gives all the characters in it other positions, and what is kept is of no use any more.
    """
    hop = max(1, block_size // 2) if any(cache.window is None for cache in caches(model)) else 1
    too_many = max(0, end - block_size)
    return -(-too_many // hop) * hop


def encode_prompt(tokenizer: CharTokenizer, prompt: str) -> Tensor:
    """int64 (T,), T >= 1. An empty prompt is a line break, or the first character of an alphabet that has none.

    Raises UserError for a character that the tokenizer does not know.
    """
    if not prompt:
        prompt = "\n" if "\n" in tokenizer.chars else tokenizer.chars[0]
    try:
        return tokenizer.encode(prompt).long()
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None


def _logits(model: nn.Module, block_size: int, text: list[int], cached: bool) -> Iterator[Tensor]:
    """Logits (V,) of what follows `text`, which grows by an id before the next are asked for."""
    cached = bool(cached and caches(model)) and shapes_may_grow(next(model.parameters()).device)
    return (_cached if cached else _recomputed)(model, text, block_size)


@torch.no_grad()
def _recomputed(model: nn.Module, text: list[int], block_size: int) -> Iterator[Tensor]:
    """Those logits, all computed anew.

    The model always sees (1, block_size) ids, filled up with zeros on the right: a causal model's logits at the last
    real id cannot see them, and a device that keeps memory for each new shape sees just one.
    """
    device = next(model.parameters()).device
    while True:
        seen = text[window_start(len(text), model, block_size) :]
        window = torch.zeros(1, block_size, dtype=torch.long)
        window[0, : len(seen)] = torch.tensor(seen)
        yield model(window.to(device))[0, len(seen) - 1]


@torch.no_grad()
def _cached(model: nn.Module, text: list[int], block_size: int) -> Iterator[Tensor]:
    """The same, by a model with a cache, which is shown every character once, and half a window when that moves on.

    Where the cache has a window of its own, that moves by itself, and nothing is ever shown twice. Such a model goes by
    more than the window: what is kept of a character was made when it saw as many before it.
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
    # the largest logit becomes 0 first, so that no temperature, however small, makes it infinite
    probabilities = ((logits - logits.max()).double() / temperature).softmax(dim=0)
    return int(torch.multinomial(probabilities, num_samples=1, generator=generator))
