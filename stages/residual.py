"""Rung 5, residual: skip connections, and with them three blocks.

What is new: each part adds to what was there in place of replacing it. The sum passes gradients on unchanged, so the
first block learns as soon as the last, and a block that has nothing to say can stay silent. That makes depth useful:
three blocks from here on. Without the skips the same three blocks do worse than one.

In the curve: nearly as large a step as the one to several heads, and from here on the curves still fall at the end.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from training import TrainConfig, run

LESSON = ("Config", "Block.forward")  # what differs from feed_forward.py


@dataclass(frozen=True)
class Config(TrainConfig):
    n_embd: int = 32  # numbers in a character's vector
    n_head: int = 4  # attention heads; they share the width
    n_layer: int = 3  # blocks, one after the other


class SelfAttention(nn.Module):
    """Each position gathers what it needs from itself and those before it: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # three projections in one product
        self.proj = nn.Linear(config.n_embd, config.n_embd)  # lets the heads' findings mix
        future = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)  # row: who looks; column: at whom, -inf if too late

    def forward(self, x):
        T = x.shape[1]
        # (B, T, 3C) -> three times (B, H, T, D), with H heads of D = C / H
        q, k, v = rearrange(self.qkv(x), "batch time (qkv head d) -> qkv batch head time d", qkv=3, head=self.n_head)
        # of numbers of variance 1, a sum of D products has variance D: scaled back, so that softmax starts out soft
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, T)
        scores = scores + self.future[:T, :T].to(scores.dtype)  # minus infinity, of which softmax makes a weight of 0
        weights = scores.softmax(dim=-1)  # (B, H, T, T), each row sums to 1
        x = rearrange(weights @ v, "batch head time d -> batch time (head d)")  # (B, T, C)
        return self.proj(x)  # (B, T, C)


class FeedForward(nn.Module):
    """Each position for itself works on what it has: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.ReLU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
        )

    def forward(self, x):
        return self.net(x)  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


class Block(nn.Module):
    """Communication, then computation: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x):
        x = x + self.attention(x)
        x = x + self.feed_forward(x)
        return x


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)  # attention alone knows no order
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layer)))
        self.lm_head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        positions = torch.arange(idx.shape[1], device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.blocks(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
