"""Beside rung 8, previous-token heads: heads that start by attending to the previous characters (initialisation alone).

What is new: only the initial weights. In head h of each block, the query starts as the sinusoidal position h + 1
characters back and the key as the character's own position, so the head attends there from the first step on:

    q[t] . k[s]  is proportional to  sum over i of cos((t - s - (h + 1)) w[i])

for the D / 2 highest frequencies w[i]. Tokens start at zero in the D channels of these sinusoids. In rung 8, all heads
start by attending to all positions equally, and the loss stays near the bigram's until one has found the previous
character. No weight is fixed; training changes them all.

In the curve: at the laptop preset, 0.17 below rung 8 after a fifth of the steps and 0.08 at the end, nearly level
with rotary positions. The gain becomes smaller with training.
"""

import torch
from einops import rearrange
from torch import nn

from training import ScaledConfig, run
from training.cache import Cache
from training.dropout import Dropout

LESSON = ("add_previous_token_heads", "LanguageModel.init_weights")  # what differs from gpt.py
AFTER = "gpt"


class Config(ScaledConfig):
    """Rung 8's settings."""


class SelfAttention(nn.Module):
    """Each position takes a weighted mean of the values up to its own: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # query, key and value in one matmul
        self.proj = nn.Linear(config.n_embd, config.n_embd)  # mixes the heads' results
        self.dropout = Dropout(config.dropout)
        self.cache = Cache()

    def forward(self, x, mask):
        # (B, T, 3C) -> three times (B, H, T, D), with H heads of D = C / H channels
        q, k, v = rearrange(self.qkv(x), "batch time (qkv head d) -> qkv batch head time d", qkv=3, head=self.n_head)
        k, v = self.cache(k, v)  # (B, H, S, D): S = T, but while generating S counts the cached positions too
        # a dot product of D channels of variance 1 has variance D; scaled to 1, so that softmax does not start one-hot
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
        weights = (scores + mask.to(scores.dtype)).softmax(dim=-1)  # (B, H, T, S), each row sums to 1
        x = rearrange(weights @ v, "batch head time d -> batch time (head d)")  # (B, T, C)
        return self.dropout(self.proj(x))  # (B, T, C)


class FeedForward(nn.Module):
    """Each position is transformed separately: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.ReLU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
            Dropout(config.dropout),
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


def sinusoids(block_size, n_embd):
    """Sines and cosines of the position, (T, C), with wavelengths of 6 to 60,000 characters (Vaswani et al., 2017)."""
    angles = torch.arange(block_size)[:, None] * 10_000 ** (-torch.arange(0, n_embd, 2) / n_embd)  # (T, C / 2)
    return rearrange([angles.sin(), angles.cos()], "wave time d -> time (d wave)")  # (T, C)


def add_previous_token_heads(qkv, n_head, n):
    """Add to qkv (3C, C), in place, weights that make each head h = 0 ... H - 1 attend to the position h + 1 back.

    Keys copy the first n channels, the n / 2 fastest sinusoids; queries copy them too, rotated back by h + 1 positions.
    """
    queries, keys, _ = rearrange(qkv, "(qkv head d) c -> qkv head d c", qkv=3, head=n_head)  # (H, D, C) each
    frequencies = 10_000 ** (-torch.arange(0, n, 2) / qkv.shape[1])  # (n / 2,)
    for back, (query, key) in enumerate(zip(queries, keys, strict=True), start=1):
        sin, cos = (back * frequencies).sin(), (back * frequencies).cos()  # sin(t - a) = cos(a) sin(t) - sin(a) cos(t)
        rotations = rearrange([cos, -sin, sin, cos], "(new old) d -> d new old", new=2)  # (n / 2, 2, 2)
        query[:n, :n] += torch.block_diag(*rotations)
        key[:n, :n] += torch.eye(n)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)  # attention alone ignores order
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)
        causal_mask = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("causal_mask", causal_mask, persistent=False)  # row: query; column: key, -inf if later
        self.init_weights(config)

    def init_weights(self, config):
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                is_output = name.endswith(("proj", "net.2"))  # of a sub-layer, added to the residual stream
                nn.init.normal_(module.weight, std=0.02 / (2 * config.n_layer) ** 0.5 if is_output else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.token_embedding.weight, std=0.1)  # the scale at which the residual stream starts
        self.position_embedding.weight.data.copy_(0.2 * sinusoids(config.block_size, config.n_embd))
        # a head's channels, at most half of all (tokens start at zero in them), and an even number, as sinusoids need
        n = min(config.n_embd // config.n_head, config.n_embd // 2) // 2 * 2
        self.token_embedding.weight.data[:, :n] = 0  # these channels begin with the position alone
        for block in self.blocks:
            add_previous_token_heads(block.attention.qkv.weight.data, config.n_head, n)

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        past = self.blocks[0].attention.cache.length  # cached positions while generating, otherwise 0
        S = past + idx.shape[1]
        positions = torch.arange(past, S, device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, self.causal_mask[past:S, :S])  # (B, T, C)
        x = self.final_norm(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
