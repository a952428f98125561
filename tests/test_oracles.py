"""The rungs' parts against independent ones: torch's own layers, and a table that is counted, not trained."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bigram
import gpt
from helper_scripts.plot_loss import BIGRAM_FLOORS
from helper_scripts.reference import Reference, sampled_loss
from stages import feed_forward, multi_head, post_norm, pre_norm, residual, self_attention
from training.evaluate import exact_loss
from training.loop import train
from training.state import State

C, H, B, T = 32, 4, 5, 8
FUTURE = torch.ones(T, T, dtype=torch.bool).triu(1)
WITH_HEADS = (multi_head, feed_forward, residual, post_norm, pre_norm, gpt)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_one_head_is_torchs_attention(small, x):
    attention = self_attention.SelfAttention(small(self_attention))
    q, k, v = F.linear(x, attention.qkv.weight).split(C, dim=-1)
    same(attention(x), F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("rung", WITH_HEADS, ids=lambda rung: rung.__name__)
def test_many_heads_are_torchs_multi_head_attention(rung, small, x):
    attention = rung.SelfAttention(small(rung)).eval()
    torchs = nn.MultiheadAttention(C, H, batch_first=True)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(attention.qkv.weight)
        torchs.out_proj.weight.copy_(attention.proj.weight)
        torchs.out_proj.bias.copy_(attention.proj.bias)
    theirs, _ = torchs(x, x, x, attn_mask=FUTURE, need_weights=False)
    ours = attention(x)
    same(ours, theirs)
    # and both learn the same from the same error
    error = torch.randn_like(ours)
    ours.backward(error)
    gradient, x.grad = x.grad, None
    theirs.backward(error)
    same(gradient, x.grad)
    same(attention.qkv.weight.grad, torchs.in_proj_weight.grad)


@pytest.mark.parametrize(
    ("rung", "norm_first"), [(post_norm, False), (pre_norm, True), (gpt, True)], ids=["post_norm", "pre_norm", "gpt"]
)
def test_a_block_is_torchs_encoder_layer(rung, norm_first, small, x):
    block = rung.Block(small(rung)).eval()
    layer = nn.TransformerEncoderLayer(C, H, 4 * C, dropout=0.0, batch_first=True, norm_first=norm_first)
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):  # off their start, where a LayerNorm is the same as its neighbour
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        layer.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
        layer.self_attn.in_proj_bias.zero_()
        layer.self_attn.out_proj.load_state_dict(block.attention.proj.state_dict())
        layer.linear1.load_state_dict(block.feed_forward.net[0].state_dict())
        layer.linear2.load_state_dict(block.feed_forward.net[2].state_dict())
        layer.norm1.load_state_dict(block.norm1.state_dict())
        layer.norm2.load_state_dict(block.norm2.state_dict())
    same(block(x), layer(x, src_mask=FUTURE))


@pytest.fixture
def gpt_and_reference(small):
    """Rung 8 and the plain reading of the same architecture, with the same weights, all off their start."""
    config = small(gpt)
    torch.manual_seed(0)
    model = gpt.LanguageModel(65, config)
    reference = Reference(65, n_embd=C, n_head=H, n_layer=config.n_layer, block_size=T, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        copied = [
            (reference.token_embedding, model.token_embedding),
            (reference.position_embedding, model.position_embedding),
            (reference.norm, model.final_norm),
            (reference.head, model.lm_head),
        ]
        for theirs, ours in zip(reference.blocks, model.blocks, strict=True):
            copied += [
                (theirs.norm1, ours.norm1),
                (theirs.norm2, ours.norm2),
                (theirs.attention.proj, ours.attention.proj),
            ]
            copied += [(theirs.wide, ours.feed_forward.net[0]), (theirs.narrow, ours.feed_forward.net[2])]
            for weight, name in zip(ours.attention.qkv.weight.split(C), ("query", "key", "value"), strict=True):
                for head, rows in zip(theirs.attention.heads, weight.split(C // H), strict=True):
                    getattr(head, name).weight.copy_(rows)
        for theirs, ours in copied:
            theirs.load_state_dict(ours.state_dict())
    return model, reference, copied


def test_rung_8_is_the_plain_gpt(gpt_and_reference):
    model, reference, copied = gpt_and_reference
    idx, targets = torch.randint(65, (2, B, T), generator=torch.Generator().manual_seed(1))
    logits = model(idx)
    theirs, loss = reference(idx, targets)
    same(logits, theirs)
    loss.backward()
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for one, two in copied:
        for parameter, its_twin in zip(one.parameters(), two.parameters(), strict=True):
            same(its_twin.grad, parameter.grad)
    for block, plain in zip(model.blocks, reference.blocks, strict=True):
        parts = [
            getattr(head, name).weight.grad for name in ("query", "key", "value") for head in plain.attention.heads
        ]
        same(block.attention.qkv.weight.grad, torch.cat(parts))


def test_the_sampled_loss_estimates_the_exact_one(gpt_and_reference, corpus):
    model, reference, _ = gpt_and_reference
    exact = exact_loss(model, corpus.train, T)
    assert sampled_loss(reference, corpus, batch_size=16, block_size=T) == pytest.approx(exact, abs=0.05)
    assert reference.training


def test_a_residual_block_adds_and_a_plain_one_does_not(small, x):
    plain, added = feed_forward.Block(small(feed_forward)), residual.Block(small(residual))
    with torch.no_grad():
        for block in (plain, added):
            for parameter in block.parameters():
                parameter.zero_()
    assert plain(x).abs().max() == 0
    assert torch.equal(added(x), x)


def counted_loss(train: np.ndarray, val: np.ndarray, vocab_size: int) -> float:
    """Validation loss of the table of pairs in the train split, each count one higher."""
    counts = np.ones((vocab_size, vocab_size))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log(probabilities[val[:-1], val[1:]]).mean())


def test_a_trained_bigram_comes_near_the_counted_table(shakespeare):
    floor = counted_loss(shakespeare.train.numpy(), shakespeare.val.numpy(), 65)
    assert abs(floor - BIGRAM_FLOORS[shakespeare.sha256[:12]]) < 5e-5  # the line in the plot
    config = bigram.Config(eval_interval=10**9)
    model = bigram.LanguageModel(65, config)
    *_, last = train(State.at_start(model, config), shakespeare, config, "fp32", range(config.steps))
    assert abs(last.val_loss - floor) < 0.01
