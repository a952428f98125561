"""Rung 7, pre-norm: LayerNorm before each sub-layer, and a final one.

What is new: the LayerNorm moves from after each addition to before each sub-layer, as in GPT-2 (Radford et al., 2019;
Xiong et al., 2020). Every sub-layer still gets normalised vectors, but the residual stream itself is a plain sum from
the embedding to the output. A final LayerNorm normalises that sum before the logits.

In the curve: level with post-norm at this depth. With twelve blocks, pre-norm learns where post-norm hardly does
(notes.md, chapters 6 and 7).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from training import TrainConfig, run

LESSON = ("Block.forward", "LanguageModel.__init__", "LanguageModel.forward")  # what differs from post_norm.py


@dataclass(frozen=True)
class Config(TrainConfig):
    n_embd: int = 32  # channels of a character's vector
    n_head: int = 4  # attention heads, of n_embd / n_head channels each
    n_layer: int = 3  # blocks


class SelfAttention(nn.Module):
    """Each position takes a weighted mean of the values up to its own: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # query, key and value in one matmul
        self.proj = nn.Linear(config.n_embd, config.n_embd)  # mixes the heads' results

    def forward(self, x, mask):
        # (B, T, 3C) -> three times (B, H, T, D), with H heads of D = C / H channels
        q, k, v = rearrange(self.qkv(x), "batch time (qkv head d) -> qkv batch head time d", qkv=3, head=self.n_head)
        # a dot product of D channels of variance 1 has variance D; scaled to 1, so that softmax does not start one-hot
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, T)
        weights = (scores + mask.to(scores.dtype)).softmax(dim=-1)  # (B, H, T, T), each row sums to 1
        x = rearrange(weights @ v, "batch head time d -> batch time (head d)")  # (B, T, C)
        return self.proj(x)  # (B, T, C)


class FeedForward(nn.Module):
    """Each position is transformed separately: (B, T, C) -> (B, T, C)."""

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
        self.norm1 = nn.LayerNorm(config.n_embd)
        self.norm2 = nn.LayerNorm(config.n_embd)

    def forward(self, x, mask):
        x = x + self.attention(self.norm1(x), mask)
        x = x + self.feed_forward(self.norm2(x))
        return x


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)  # attention alone ignores order
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)
        causal_mask = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("causal_mask", causal_mask, persistent=False)  # row: query; column: key, -inf if later

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        for block in self.blocks:
            x = block(x, self.causal_mask[:T, :T])  # (B, T, C)
        x = self.final_norm(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
