"""Rung 2, self-attention: one head of causal self-attention, learned positions.

What is new: each character and each position gets a vector, in place of the table's row, and one head of causal
self-attention follows (Vaswani et al., 2017). Each position has a query, a key and a value; the dot product of its
query with a key decides how much of that key's value it takes. A mask hides later positions, because they do not exist
yet when a text is generated.

In the curve: below the bigram, though not by much. One head can gather characters, but nothing computes on them yet.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from training import TrainConfig, run

LESSON = ("Config", "SelfAttention", "LanguageModel.__init__", "LanguageModel.forward")  # what differs from bigram.py


@dataclass(frozen=True)
class Config(TrainConfig):
    n_embd: int = 32  # channels of a character's vector


class SelfAttention(nn.Module):
    """Each position takes a weighted mean of the values up to its own: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # query, key and value in one matmul

    def forward(self, x, mask):
        q, k, v = rearrange(self.qkv(x), "batch time (qkv c) -> qkv batch time c", qkv=3)  # (B, T, C) each
        # a dot product of C channels of variance 1 has variance C; scaled to 1, so that softmax does not start one-hot
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, T, T)
        weights = (scores + mask.to(scores.dtype)).softmax(dim=-1)  # (B, T, T), each row sums to 1
        return weights @ v  # (B, T, C)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)  # attention alone ignores order
        self.attention = SelfAttention(config)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)
        causal_mask = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("causal_mask", causal_mask, persistent=False)  # row: query; column: key, -inf if later

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.attention(x, self.causal_mask[:T, :T])  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
