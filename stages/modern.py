"""Rung 14, modern: all of it, the values of the first block in every block, and a look at the characters just before.

What is new: two parts, both about what need not be found out again. Attention and feed-forward no longer work on a
character's vector alone: each number becomes a weighted sum of itself and the same number of the three characters
before, with weights that are learned (a short causal convolution: So et al., 2021; Allen-Zhu, 2025). That a "t" came
just before an "h" is no longer for a head to find out, and heads are free to look further.

And the values that attention gathers are a mixture of the block's own and the first block's (value residual: Zhou et
al., 2024), in two shares that each block learns. The first block's values tell of a character and the three before it,
and of nothing else. Further up, that is one part of a growing sum; so attention can still gather it undiluted.

In the curve: 0.030 in a small size, and 1.47 in twelve minutes on two cores (--recipe quick). These parts are what was
left of ten candidates; notes.md has the others.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from training import TrainConfig, run
from training.cache import Cache
from training.dropout import Dropout

LESSON = (  # what differs from muon.py
    "SelfAttention",
    "SelfAttention.__init__",
    "SelfAttention.forward",
    "Nearby",
    "Block",
    "Block.__init__",
    "Block.forward",
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

    PAIRS: ClassVar = True  # a head's numbers come in pairs, so there has to be an even number of them
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


def angles(block_size, d):
    """How far each position turns each pair of d numbers, (T, D / 2): 1 radian a character, then ever less."""
    speeds = 10_000 ** (-torch.arange(0, d, 2) / d)  # (D / 2,)
    return torch.arange(block_size)[:, None] * speeds  # (T, D / 2)


def turn(x, by):
    """Every pair of numbers an arrow, turned by an angle: x (B, H, T, D), by (T, D / 2) -> (B, H, T, D).

    Pair i is numbers i and i + D / 2; which go together does not matter, since the projections before are learned.
    """
    cos, sin = by.cos().to(x.dtype), by.sin().to(x.dtype)
    a, b = rearrange(x, "batch head time (xy pair) -> xy batch head time pair", xy=2)  # where each arrow points
    return rearrange([a * cos - b * sin, a * sin + b * cos], "xy batch head time pair -> batch head time (xy pair)")


class SelfAttention(nn.Module):
    """Each position gathers what it needs from itself and those before it: (B, T, C) -> (B, T, C).

    Also takes the first block's values, (B, H, T, D), and returns them; the first block, given None, its own.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # three projections in one product
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)  # lets the heads' findings mix
        self.q_norm = nn.RMSNorm(config.n_embd // config.n_head)
        self.k_norm = nn.RMSNorm(config.n_embd // config.n_head)
        self.shares = nn.Parameter(torch.tensor([0.5, 0.5]))  # of the first block's values, and of its own
        self.dropout = Dropout(config.dropout)
        self.cache = Cache(window=config.block_size)
        future = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)  # row: who looks; column: at whom, -inf if too late
        self.register_buffer("angles", angles(config.block_size, config.n_embd // config.n_head), persistent=False)

    def forward(self, x, first):
        T = x.shape[1]
        # (B, T, 3C) -> three times (B, H, T, D), with H heads of D = C / H
        q, k, v = rearrange(self.qkv(x), "batch time (qkv head d) -> qkv batch head time d", qkv=3, head=self.n_head)
        first = v if first is None else first
        v = self.shares[0] * first + self.shares[1] * v
        q, k = self.q_norm(q), self.k_norm(k)  # each of length sqrt(D), but for a gain
        k, v = self.cache(k, v)  # (B, H, S, D), and S = T; but while sampling, S counts those before as well
        S = k.shape[2]
        q, k = turn(q, self.angles[S - T : S]), turn(k, self.angles[:S])  # only how far apart they are will count
        # of numbers of variance 1, a sum of D products has variance D: scaled back, so that softmax starts out soft
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
        scores = scores + self.future[S - T : S, :S].to(scores.dtype)  # minus infinity, which softmax makes 0
        weights = scores.softmax(dim=-1)  # (B, H, T, S), each row sums to 1
        x = rearrange(weights @ v, "batch head time d -> batch time (head d)")  # (B, T, C)
        return self.dropout(self.proj(x)), first  # (B, T, C), (B, H, T, D)


class FeedForward(nn.Module):
    """Each position for itself works on what it has: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        hidden = 8 * config.n_embd // 3  # three matrices of 8/3 C are as large as two of 4C
        self.up = nn.Linear(config.n_embd, 2 * hidden, bias=False)  # the gate and what it lets pass, in one product
        self.down = nn.Linear(hidden, config.n_embd, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, x):
        gate, x = rearrange(self.up(x), "batch time (two hidden) -> two batch time hidden", two=2)  # (B, T, 8/3 C) each
        x = F.silu(gate) * x
        return self.dropout(self.down(x))  # (B, T, C)


class Nearby(nn.Module):
    """Each number a weighted sum of itself and the same one of the three characters before: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(4, config.n_embd))  # of each number; row: from how many characters back
        nn.init.ones_(self.shares[0])  # to begin with, each character by itself
        self.before = Cache(window=config.block_size + 3, dim=1)

    def forward(self, x):
        T = x.shape[1]
        (x,) = self.before(x)  # (B, T, C), but while sampling with those before as well
        x = F.pad(x, (0, 0, 3, 0))[:, -(T + 3) :]  # (B, 3 + T, C): before the first there is nothing
        return sum(share * x[:, 3 - back : 3 - back + T] for back, share in enumerate(self.shares))  # (B, T, C)


class Block(nn.Module):
    """Communication, then computation: (B, T, C) -> (B, T, C), and the first block's values handed on."""

    def __init__(self, config):
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.RMSNorm(config.n_embd)
        self.norm2 = nn.RMSNorm(config.n_embd)
        self.nearby1 = Nearby(config)
        self.nearby2 = Nearby(config)

    def forward(self, x, first):
        heard, first = self.attention(self.nearby1(self.norm1(x)), first)
        x = x + heard
        x = x + self.feed_forward(self.nearby2(self.norm2(x)))
        return x, first


def orthogonal(x):
    """Matrices x (N, R, C), their singular values brought close to one, their singular vectors kept.

    Each round applies the odd polynomial a s + b s^3 + c s^5 to every singular value s at once. It is steep at zero, so
    that small ones grow fast, and wanders about one from there on (Jordan et al., 2024). What is at least 1/500 of x's
    norm ends up between 0.68 and 1.20.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the product with itself is then the smaller one of two
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above one
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: for the matrices inside a network. In fp32, where torch.optim.Muon works in bf16."""

    REMEMBERS = ("momentum_buffer",)  # of each matrix, for whoever saves a run

    def __init__(self, matrices, lr=1e-3, weight_decay=0.0, momentum=0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "stacked": 1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(mean, group["momentum"])  # Nesterov's: where the mean is going
                ahead = orthogonal(rearrange(ahead, "(n row) column -> n row column", n=group["stacked"]))
                size = 0.2 * max(ahead.shape[1:]) ** 0.5  # its root mean square is then 0.2, about AdamW's
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(rearrange(ahead, "n row column -> (n row) column"), alpha=-group["lr"] * size)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.RMSNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.init_weights(config)

    def init_weights(self, config):
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):  # what adds to the sum: 2 in each block
                nn.init.zeros_(parameter)
            elif name.endswith("weight") and parameter.dim() == 2:  # the RMSNorms' gains and the shares stay
                nn.init.normal_(parameter, std=0.02)

    def optimizers(self, config):
        """What trains which weights: Muon the blocks' matrices, AdamW all others."""
        attentions = [block.attention for block in self.blocks]
        feed_forwards = [block.feed_forward for block in self.blocks]
        matrices = [
            {"params": [part.qkv.weight for part in attentions], "stacked": 3},  # three matrices, stored as one
            {"params": [part.up.weight for part in feed_forwards], "stacked": 2},
            {"params": [part.proj.weight for part in attentions]},
            {"params": [part.down.weight for part in feed_forwards]},
        ]
        taken = {parameter for group in matrices for parameter in group["params"]}
        others = [parameter for parameter in self.parameters() if parameter not in taken]
        adamw = torch.optim.AdamW(others, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True)
        return [Muon(matrices, weight_decay=config.weight_decay), adamw]

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        x = self.token_embedding(idx)  # (B, T, C)
        x = self.dropout(x)
        first = None  # the first block's values, once it has some
        for block in self.blocks:
            x, first = block(x, first)  # (B, T, C), (B, H, T, D)
        x = self.final_norm(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
