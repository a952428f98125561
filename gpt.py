"""Rung 8, GPT: the same architecture, scaled up.

What is new: scale, to 250 times the parameters. Six blocks of six heads, 384 numbers a character, and a context of 256
characters, where the rungs before saw 8. A model of this size can learn a million characters by heart, so dropout
silences a fifth of what each part says, at random (Srivastava et al., 2014). And it starts out smaller: weights from
N(0, 0.02), those that add to the sum smaller still, so that the sum of twelve parts has the size of one (Radford et
al., 2019). The positions start as waves, in which one step back is the same rotation everywhere (Vaswani et al., 2017),
and the heads as that rotation: each begins by looking at one of the characters just before, rather than at 256 alike.
All of it is learned from there. While it writes a text it keeps the keys and values of the characters before, which do
not change any more: computing the whole context anew for every character would take a dozen times as long.

So large a model also wants other settings: a learning rate that rises at first and falls to zero at the end, weights
pulled towards zero (weight decay), larger batches. Not all of what this rung gains is gained by size alone.

In the curve: everything else looks flat beside it. Its steps are not the others' steps, though: each reads 2,048
characters where theirs read 256, and takes a hundred times as long.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import nn

from training import TrainConfig, run
from training.cache import Cache
from training.dropout import Dropout

LESSON = (  # what differs from stages/pre_norm.py
    "Config",
    "SelfAttention.__init__",
    "SelfAttention.forward",
    "FeedForward.__init__",
    "frequencies",
    "waves",
    "look_back",
    "LanguageModel.__init__",
    "LanguageModel.init_weights",
    "LanguageModel.forward",
)


@dataclass(frozen=True)
class Config(TrainConfig):
    steps: int = 5880  # updates of the weights: the text twelve times
    batch_size: int = 8  # sequences in a batch
    block_size: int = 256  # characters of context
    learning_rate: float = 1e-3  # how far a step moves the weights, at its highest
    weight_decay: float = 0.4  # how strongly the weights are pulled towards zero
    beta2: float = 0.99  # AdamW's memory of squared gradients: shorter, for a shorter run
    warmup_steps: int = 200  # steps over which the learning rate rises from zero, a tenth of all at most
    decay: bool = True  # let the learning rate fall, after the warm-up, linearly to zero at the last step
    without_replacement: bool = True  # read no window of the text again before all of it has been read
    eval_interval: int = 2000  # steps from one evaluation to the next
    n_embd: int = 384  # numbers in a character's vector
    n_head: int = 6  # attention heads; they share the width
    n_layer: int = 6  # blocks, one after the other
    dropout: float = 0.2  # share of each part's output that training silences at random
    recipe: Literal["ours", "lecture", "short", "laptop", "quick"] = "ours"  # settings to start from, in place of these

    RECIPES: ClassVar = {  # what --recipe puts in place of the defaults above; flags go over it
        "lecture": {
            "steps": 5000,
            "batch_size": 64,
            "learning_rate": 3e-4,
            "weight_decay": 0.01,
            "beta2": 0.999,
            "warmup_steps": 0,
            "decay": False,
            "without_replacement": False,
            "dropout": 0.2,
            "eval_interval": 500,
        },
        "short": {  # at full size, for as many characters as the text has
            "steps": 500,
            "without_replacement": False,
            "eval_interval": 500,
        },
        "laptop": {  # a few minutes on one core, for several seeds of every rung from here on
            "steps": 1000,
            "block_size": 128,
            "learning_rate": 2e-3,
            "weight_decay": 0.1,
            "warmup_steps": 100,
            "without_replacement": False,
            "dropout": 0.0,
            "eval_interval": 250,
            "n_embd": 128,
            "n_head": 4,
            "n_layer": 4,
        },
        "quick": {  # some ten minutes on two cores, and what a model of a size for that can learn in it
            "steps": 1000,
            "learning_rate": 4e-3,
            "weight_decay": 0.1,
            "warmup_steps": 50,
            "without_replacement": False,
            "dropout": 0.0,
            "eval_interval": 500,
            "n_embd": 160,
            "n_head": 5,
            "n_layer": 6,
        },
    }


class SelfAttention(nn.Module):
    """Each position gathers what it needs from itself and those before it: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # three projections in one product
        self.proj = nn.Linear(config.n_embd, config.n_embd)  # lets the heads' findings mix
        self.dropout = Dropout(config.dropout)
        self.cache = Cache()
        future = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)  # row: who looks; column: at whom, -inf if too late

    def forward(self, x):
        T = x.shape[1]
        # (B, T, 3C) -> three times (B, H, T, D), with H heads of D = C / H
        q, k, v = rearrange(self.qkv(x), "batch time (qkv head d) -> qkv batch head time d", qkv=3, head=self.n_head)
        k, v = self.cache(k, v)  # (B, H, S, D), and S = T; but while sampling, S counts those before as well
        S = k.shape[2]
        # of numbers of variance 1, a sum of D products has variance D: scaled back, so that softmax starts out soft
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
        scores = scores + self.future[S - T : S, :S].to(scores.dtype)  # minus infinity, which softmax makes 0
        weights = scores.softmax(dim=-1)  # (B, H, T, S), each row sums to 1
        x = rearrange(weights @ v, "batch head time d -> batch time (head d)")  # (B, T, C)
        return self.dropout(self.proj(x))  # (B, T, C)


class FeedForward(nn.Module):
    """Each position for itself works on what it has: (B, T, C) -> (B, T, C)."""

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

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return x


def frequencies(n_embd):
    """Radians a position by which each of the waves advances, (C / 2,): 1, then ever less, down to 1 / 10,000."""
    return 10_000 ** (-torch.arange(0, n_embd, 2) / n_embd)


def waves(block_size, n_embd):
    """Sines and cosines over the positions, (T, C), 6 to 60,000 positions long (Vaswani et al., 2017)."""
    angles = torch.arange(block_size)[:, None] * frequencies(n_embd)  # (T, C / 2)
    return rearrange([angles.sin(), angles.cos()], "wave time d -> time (d wave)")[:, :n_embd]  # (T, C)


def look_back(qkv, n_head, n):
    """Have each head begin by looking at one character before: head h, of 0 to H - 1, at the one h + 1 before.

    qkv (3C, C) is changed in place. Keys begin with the first n numbers, the fastest n / 2 waves, which tell neighbours
    apart best; queries with the same waves as they were h + 1 positions ago.
    """
    queries, keys, _ = rearrange(qkv, "(qkv head d) c -> qkv head d c", qkv=3, head=n_head)  # (H, D, C) each
    for back, (query, key) in enumerate(zip(queries, keys, strict=True), start=1):
        angles = back * frequencies(qkv.shape[1])[: n // 2]
        sin, cos = angles.sin(), angles.cos()  # sin(t - a) = cos(a) sin(t) - sin(a) cos(t), and so for the cosine
        turns = rearrange([cos, -sin, sin, cos], "(new old) wave -> wave new old", new=2)
        query[:n, :n] += torch.block_diag(*turns)
        key[:n, :n] += torch.eye(n)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)  # attention alone knows no order
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layer)))
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)
        self.init_weights(config)

    def init_weights(self, config):
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:  # the LayerNorms' gains stay at one
                adds_to_the_sum = name.endswith(("proj.weight", "net.2.weight"))  # 2 in each block
                nn.init.normal_(parameter, std=0.02 / (2 * config.n_layer) ** 0.5 if adds_to_the_sum else 0.02)
        n = min(config.n_embd // config.n_head, config.n_embd // 2) // 2 * 2  # numbers that tell heads where they are
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        self.token_embedding.weight.data[:, :n] = 0  # which characters, to begin with, leave alone
        self.position_embedding.weight.data.copy_(0.2 * waves(config.block_size, config.n_embd))
        for block in self.blocks:
            look_back(block.attention.qkv.weight.data, config.n_head, n)

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        past = self.blocks[0].attention.cache.length  # characters before these, while sampling; otherwise 0
        positions = torch.arange(past, past + idx.shape[1], device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.dropout(x)
        x = self.blocks(x)  # (B, T, C)
        x = self.final_norm(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
