"""Beside rung 15, ablation: modern with one part taken out.

What is new: --without PART removes one of the seven parts that rungs 9 to 15 add, and restores what it replaced. A
part's own rung shows what the part gains when it is added; this shows what it gains at the end, together with all the
others. If two parts do the same work, the earlier one gains more in its rung than here.

In the curve: the further it lies above modern's, the more the part gains. docs/results.md has the table: Muon gains
most; for RMSNorm and the value residual, five seeds show no difference.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from training import ScaledConfig, run
from training.cache import Cache
from training.dropout import Dropout
from training.optimizers import adamw

LESSON = (  # what differs from modern.py
    "Config",
    "SelfAttention.__init__",
    "SelfAttention.forward",
    "FeedForward.__init__",
    "FeedForward.forward",
    "Block.__init__",
    "sinusoids",
    "LanguageModel.__init__",
    "LanguageModel.init_weights",
    "LanguageModel.optimizers",
    "LanguageModel.forward",
)
AFTER = "stages.modern"


@dataclass(frozen=True)
class Config(ScaledConfig):
    # the part to remove, named after its rung; short_conv is rung 15's
    without: Literal["rotary", "rms_norm", "qk_norm", "swiglu", "muon", "value_residual", "short_conv"] = "short_conv"
    laptop_learning_rate = 1e-2  # the best of three on held-out text, from swiglu on
    small_for_minutes = True  # rung 8's size learns little in a few minutes


def rotary_angles(block_size, d):
    """Angles (T, D / 2) in radians: position t rotates pair i by t times i's frequency, from 1 towards 1 / 10,000."""
    return torch.arange(block_size)[:, None] * 10_000 ** (-torch.arange(0, d, 2) / d)


def apply_rotary(x, cos, sin):
    """Rotate each pair of channels, i and i + D / 2, by its angle: x (B, H, T, D); cos, sin (S, D / 2), last T used."""
    a, b = x.chunk(2, dim=-1)  # (B, H, T, D / 2) each
    cos, sin = cos[-x.shape[2] :], sin[-x.shape[2] :]  # (T, D / 2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)  # (B, H, T, D)


class SelfAttention(nn.Module):
    """Each position takes a weighted mean of the values up to its own: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.without = config.without
        bias = self.without == "rms_norm"
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # query, key and value in one matmul
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)  # mixes the heads' results
        if self.without != "qk_norm":
            self.q_norm = nn.RMSNorm(config.n_embd // config.n_head)
            self.k_norm = nn.RMSNorm(config.n_embd // config.n_head)
        if self.without != "value_residual":
            self.value_lambdas = nn.Parameter(torch.tensor([0.5, 0.5]))  # weights of the first block's values, its own
        self.dropout = Dropout(config.dropout)
        self.cache = Cache(window=None if self.without == "rotary" else config.block_size)

    def forward(self, x, first_values, mask, cos, sin):
        # (B, T, 3C) -> three times (B, H, T, D), with H heads of D = C / H channels
        q, k, v = rearrange(self.qkv(x), "batch time (qkv head d) -> qkv batch head time d", qkv=3, head=self.n_head)
        first_values = v if first_values is None else first_values  # (B, H, T, D); None in the first block
        if self.without != "value_residual":
            v = self.value_lambdas[0] * first_values + self.value_lambdas[1] * v
        if self.without != "qk_norm":
            q, k = self.q_norm(q.float()), self.k_norm(k.float())  # of length sqrt(D), times a gain; fp32, as gains are
        k, v = self.cache(k, v)  # (B, H, S, D): S = T, but while generating S counts the cached positions too
        if self.without != "rotary":
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)  # scores now depend on distances alone
        # a dot product of D channels of variance 1 has variance D; scaled to 1, so that softmax does not start one-hot
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
        weights = (scores + mask.to(scores.dtype)).softmax(dim=-1)  # (B, H, T, S), each row sums to 1
        x = rearrange(weights @ v, "batch head time d -> batch time (head d)")  # (B, T, C)
        return self.dropout(self.proj(x)), first_values  # (B, T, C), (B, H, T, D)


class FeedForward(nn.Module):
    """Each position is transformed separately: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        gated, bias = config.without != "swiglu", config.without == "rms_norm"
        hidden = 8 * config.n_embd // 3 if gated else 4 * config.n_embd  # as many parameters either way
        self.gate = nn.Linear(config.n_embd, hidden, bias=bias) if gated else None
        self.up = nn.Linear(config.n_embd, hidden, bias=bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x):
        x = F.silu(self.gate(x)) * self.up(x) if self.gate else F.relu(self.up(x))  # (B, T, 8/3 C), or (B, T, 4C)
        return self.dropout(self.down(x))  # (B, T, C)


class ShortConv(nn.Module):
    """Each channel becomes a weighted sum of itself and of the three characters before: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.conv = nn.Conv1d(config.n_embd, config.n_embd, kernel_size=4, groups=config.n_embd, bias=False)
        nn.init.zeros_(self.conv.weight)  # (C, 1, 4): four weights a channel, the last for the character itself
        nn.init.ones_(self.conv.weight[..., -1])  # at the start, the output equals the input
        self.cache = Cache(window=config.block_size + 3, dim=1)  # a context, and three characters before it

    def forward(self, x):
        T = x.shape[1]
        (x,) = self.cache(x)  # (B, S, C): S = T, but while generating S counts the cached characters too
        x = F.pad(x, (0, 0, 3, 0))[:, -(T + 3) :]  # (B, 3 + T, C), zeros before the first character
        return self.conv(x.mT).mT  # Conv1d takes (B, C, T); back to (B, T, C)


class Block(nn.Module):
    """Communication, then computation: (B, T, C) -> (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)
        norm = nn.LayerNorm if config.without == "rms_norm" else nn.RMSNorm
        self.norm1 = norm(config.n_embd)
        self.norm2 = norm(config.n_embd)
        self.conv1 = nn.Identity() if config.without == "short_conv" else ShortConv(config)
        self.conv2 = nn.Identity() if config.without == "short_conv" else ShortConv(config)

    def forward(self, x, first_values, mask, cos, sin):
        attended, first_values = self.attention(self.conv1(self.norm1(x)), first_values, mask, cos, sin)
        x = x + attended
        x = x + self.feed_forward(self.conv2(self.norm2(x)))
        return x, first_values


def newton_schulz(x):
    """Matrices x (N, R, C) -> the same singular vectors, singular values of 0.68 to 1.20 (Jordan et al., 2024).

    Each iteration applies a s + b s^3 + c s^5 to every singular value s; those below 1/670 of x's norm stay smaller.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # x @ x.mT is then the smaller of the two Gram matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above one
    for _ in range(5):
        gram = x @ x.mT  # (N, R, R)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram @ gram
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum. All matrices of a group have one shape; each may be a stack of `stacked` matrices."""

    def __init__(self, groups, lr=1e-3, weight_decay=0.0, momentum=0.95):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "stacked": 1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            updates = []
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                updates.append(matrix.grad.lerp(mean, group["momentum"]))  # Nesterov momentum
            n = group["stacked"]
            updates = newton_schulz(rearrange(updates, "matrix (n row) column -> (matrix n) row column", n=n))
            scale = 0.2 * max(updates.shape[1:]) ** 0.5  # their root mean square is then 0.2, about AdamW's
            updates = rearrange(updates, "(matrix n) row column -> matrix (n row) column", n=n)
            for matrix, update in zip(group["params"], updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * scale)


def sinusoids(block_size, n_embd):
    """Sines and cosines of the position, (T, C), with wavelengths of 6 to 60,000 characters (Vaswani et al., 2017)."""
    angles = torch.arange(block_size)[:, None] * 10_000 ** (-torch.arange(0, n_embd, 2) / n_embd)  # (T, C / 2)
    return rearrange([angles.sin(), angles.cos()], "wave time d -> time (d wave)")  # (T, C)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.without = config.without
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        if self.without == "rotary":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = (nn.LayerNorm if self.without == "rms_norm" else nn.RMSNorm)(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=self.without == "rms_norm")
        causal_mask = torch.full((config.block_size, config.block_size), float("-inf")).triu(diagonal=1)
        self.register_buffer("causal_mask", causal_mask, persistent=False)  # row: query; column: key, -inf if later
        angles = rotary_angles(config.block_size, config.n_embd // config.n_head)
        self.register_buffer("rotary", torch.stack([angles.cos(), angles.sin()]), persistent=False)  # (2, T, D / 2)
        self.init_weights(config)

    def init_weights(self, config):
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                is_output = name.endswith(("proj", "down"))  # of a sub-layer, added to the residual stream
                nn.init.normal_(module.weight, std=0.02 / (2 * config.n_layer) ** 0.5 if is_output else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.token_embedding.weight, std=0.1)  # the scale at which the residual stream starts
        if self.without == "rotary":
            self.position_embedding.weight.data.copy_(0.2 * sinusoids(config.block_size, config.n_embd))

    def optimizers(self, config):
        """Muon for the blocks' matrices, AdamW for all other weights; without Muon, AdamW for all."""
        if self.without == "muon":
            return [adamw(self, config)]
        groups = [
            {"params": [block.attention.qkv.weight for block in self.blocks], "stacked": 3},  # query, key and value
            {"params": [block.attention.proj.weight for block in self.blocks]},
            {"params": [block.feed_forward.up.weight for block in self.blocks]},
            {"params": [block.feed_forward.down.weight for block in self.blocks]},
        ]
        if self.without != "swiglu":
            groups.append({"params": [block.feed_forward.gate.weight for block in self.blocks]})
        matrices = [matrix for group in groups for matrix in group["params"]]
        return [Muon(groups, weight_decay=config.weight_decay), adamw(self, config, exclude=matrices)]

    def forward(self, idx):
        """idx: int64 (B, T), T <= block_size -> logits (B, T, V)."""
        past = self.blocks[0].attention.cache.length  # cached positions while generating, otherwise 0
        S = min(past + idx.shape[1], len(self.causal_mask))  # what no longer fits into the context leaves the cache
        mask, (cos, sin) = self.causal_mask[:S, :S][-idx.shape[1] :], self.rotary[:, :S]  # (T, S), (S, D / 2) each
        x = self.token_embedding(idx)  # (B, T, C)
        if self.without == "rotary":
            x = x + self.position_embedding(torch.arange(S, device=idx.device)[-idx.shape[1] :])  # + (T, C)
        x = self.dropout(x)
        first_values = None
        for block in self.blocks:
            x, first_values = block(x, first_values, mask, cos, sin)  # (B, T, C), (B, H, T, D)
        x = self.final_norm(x)  # (B, T, C)
        return self.lm_head(x)  # (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
