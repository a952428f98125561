"""Rung 2, self-attention: one head that looks at all characters before.

What is new: a vector for each character and each position in place of the table's row, and one head of causal
self-attention. Each position asks (query), offers (key) and tells (value); how well a query meets a key decides how
much of that value it takes. A mask keeps the future out, for at inference time there is none.

In the curve: below the bigram, though not by much. One head can look back, but has nothing to think with afterwards.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from training import TrainConfig, run

LESSON = ("Config", "SelfAttention", "LanguageModel.__init__", "LanguageModel.forward")  # what differs from bigram.py


@dataclass(frozen=True)
class Config(TrainConfig):
    n_embd: int = 32  # numbers in a character's vector


class SelfAttention(nn.Module):
    """Each position gathers what it needs from itself and those before it: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # three projections in one product
        future = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)  # row: who looks; column: at whom, -inf if too late

    def forward(self, x):
        T = x.shape[1]
        q, k, v = rearrange(self.qkv(x), "batch time (qkv c) -> qkv batch time c", qkv=3)  # (B, T, C) each
        # of numbers of variance 1, a sum of C products has variance C: scaled back, so that softmax starts out soft
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, T, T)
        scores = scores + self.future[:T, :T].to(scores.dtype)  # minus infinity, of which softmax makes a weight of 0
        weights = scores.softmax(dim=-1)  # (B, T, T), each row sums to 1
        return weights @ v  # (B, T, C)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)  # attention alone knows no order
        self.attention = SelfAttention(config)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        positions = torch.arange(idx.shape[1], device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.attention(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
