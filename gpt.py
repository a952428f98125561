"""Rung 8, GPT: scale, and what it needs: dropout, small initial weights, a schedule.

What is new: the model of rung 7 with 250 times the parameters (6 layers, 6 heads, 384 channels, a context of 256), and
what that size needs. A model of this size can memorise a million characters, so in training dropout sets a random fifth
of the embeddings and of each sub-layer's output to zero (Srivastava et al., 2014). Weights start with a standard
deviation of 0.02, those of the 2L sub-layers' output layers sqrt(2L) times smaller, so that their sum does not grow
with depth (Radford et al., 2019). Embeddings start larger, because smaller ones took longer to train; position
embeddings start as sinusoids (Vaswani et al., 2017). The learning rate rises at first, then falls to zero, and AdamW
decays the weights of the linear layers; training/presets.py has these settings. In generation, a cache keeps the keys
and values of earlier characters, which do not change; recomputing them for every character would take a dozen times as
long.

In the curve: far below every rung before it. Steps are not comparable: a step here trains on 2,048 characters instead
of 256, and takes one to two hundred times as long.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from training import ScaledConfig, run
from training.cache import Cache
from training.dropout import Dropout

LESSON = (  # what differs from stages/pre_norm.py
    "Config",
    "SelfAttention.__init__",
    "SelfAttention.forward",
    "FeedForward.__init__",
    "sinusoids",
    "LanguageModel.__init__",
    "LanguageModel.init_weights",
    "LanguageModel.forward",
)


@dataclass(frozen=True)
class Config(ScaledConfig):
    block_size: int = 256  # characters of context
    n_embd: int = 384  # channels of a character's vector
    n_head: int = 6  # attention heads, of n_embd / n_head channels each
    n_layer: int = 6  # blocks
    dropout: float = 0.2  # probability of dropping an element while training


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
