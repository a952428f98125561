"""Text from a model, a character at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def sample(
    model: nn.Module,
    idx: Tensor,
    length: int,
    block_size: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue `idx`, int64 (T,) with T >= 1, by `length` ids: int64 (T + length,), on the CPU.

    temperature: divides the logits; 0 takes the likeliest id each time. top_k: draw among the k likeliest, 0 for all.
    generator: a CPU generator, which alone decides the draws.

    The model always sees (1, block_size) ids, filled up with zeros on the right: a causal model's logits at the last
    real id cannot see them, and a device that keeps memory for each new shape sees just one. The draw is made on the
    CPU, where the same seed means the same text whatever the model runs on.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    text = torch.cat([idx.cpu(), torch.zeros(length, dtype=torch.long)])
    for end in range(len(idx), len(text)):
        seen = text[max(0, end - block_size) : end]
        window = torch.zeros(1, block_size, dtype=torch.long)
        window[0, : len(seen)] = seen
        logits = model(window.to(device))[0, len(seen) - 1].float().cpu()  # (V,)
        text[end] = _draw(logits, temperature, top_k, generator)
    model.train(was_training)
    return text


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax()
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    # the largest logit becomes 0 first, so that no temperature, however small, overflows
    probabilities = ((logits - logits.max()) / temperature).softmax(dim=0)
    return torch.multinomial(probabilities, num_samples=1, generator=generator)[0]
