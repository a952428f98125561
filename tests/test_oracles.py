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
from stages import (
    feed_forward,
    modern,
    multi_head,
    muon,
    post_norm,
    pre_norm,
    qk_norm,
    residual,
    rms_norm,
    rotary,
    self_attention,
    swiglu,
)
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


@pytest.mark.parametrize("flags", [{}, {"n_head": 8, "n_embd": 128}, {"n_head": 1}], ids=str)
def test_the_heads_of_rung_8_start_out_looking_at_the_characters_just_before(flags):
    config = gpt.Config(n_layer=1, **flags)
    torch.manual_seed(0)
    model = gpt.LanguageModel(65, config).eval()
    text = torch.randint(65, (1, 64), generator=torch.Generator().manual_seed(1))
    attention, size = model.blocks[0].attention, config.n_embd // config.n_head
    with torch.no_grad():
        x = model.blocks[0].norm1(model.token_embedding(text) + model.position_embedding.weight[:64])[0]
        queries, keys, _ = attention.qkv.weight.split(config.n_embd)
        for head in range(config.n_head):
            rows = slice(head * size, (head + 1) * size)
            scores = (x @ queries[rows].T) @ (x @ keys[rows].T).T / size**0.5  # row: who looks
            weights = scores.masked_fill(torch.ones(64, 64).triu(1) > 0, float("-inf")).softmax(dim=1)
            by_distance = [weights.diagonal(-distance).mean().item() for distance in range(32)]
            assert by_distance.index(max(by_distance)) == head + 1
            assert max(by_distance) > 0.15  # where a head that looks everywhere alike gives about 1/32


def test_the_sampled_loss_estimates_the_exact_one(gpt_and_reference, corpus):
    model, reference, _ = gpt_and_reference
    exact = exact_loss(model, corpus.train, T)
    assert sampled_loss(reference, corpus, batch_size=16, block_size=T) == pytest.approx(exact, abs=0.05)
    assert reference.training


def test_turning_is_multiplying_by_complex_numbers():
    """Each pair a complex number, times e to the i times position times speed, as RoFormer's proof has it."""
    d, generator = 8, torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, T, d, generator=generator, dtype=torch.float64)
    speeds = 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turns = torch.exp(1j * torch.arange(T)[:, None] * speeds)
    theirs = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * turns
    same(rotary.turn(x, rotary.angles(T, d)), torch.cat([theirs.real, theirs.imag], dim=-1))


def test_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator).expand(2, 1, 1, T, 8)  # the same at every position
    angles = rotary.angles(T, 8)
    scores = (rotary.turn(q, angles) @ rotary.turn(k, angles).mT)[0, 0]
    for distance in range(T):
        diagonal = scores.diagonal(-distance)
        same(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[:, 0].std() > 0.1  # but on that it does


def test_lengths_are_those_of_torchs_rms_norm_and_nothing_is_shifted(small, x):
    model = rms_norm.LanguageModel(65, small(rms_norm))
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 2 * 3 + 1  # two in each block, and the final one
    for norm in norms:
        nn.init.normal_(norm.weight)
        same(norm(x), x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * norm.weight)


ROTARY = (rotary, rms_norm, qk_norm, swiglu, muon, modern)


@pytest.mark.parametrize("rung", ROTARY, ids=lambda rung: rung.__name__)
@torch.no_grad()
def test_rotary_heads_are_torchs_attention_on_what_is_turned(rung, small):
    """By torch's own attention, of queries and keys that are normalised and turned here, once more by hand."""
    torch.manual_seed(0)
    attention, x = rung.SelfAttention(small(rung)).double().eval(), torch.randn(B, T, C, dtype=torch.float64)
    q, k, v = (part.view(B, T, H, C // H).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    if hasattr(attention, "q_norm"):
        q, k = (F.normalize(part, dim=-1) * (C // H) ** 0.5 for part in (q, k))  # the gains are one
    speeds = 10_000 ** (-torch.arange(0, C // H, 2, dtype=torch.float64) * H / C)
    turns = torch.exp(1j * torch.arange(T)[:, None] * speeds)
    q, k = (torch.complex(*part.chunk(2, dim=-1)) * turns for part in (q, k))
    q, k = (torch.cat([part.real, part.imag], dim=-1) for part in (q, k))
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    ours = attention(x, None)[0] if rung is modern else attention(x)
    same(ours, attention.proj(theirs))


def llama_block(
    x: np.ndarray, weights: dict[str, np.ndarray], n_head: int, first: list[np.ndarray] | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A block by the equations of LLaMA (Touvron et al., 2023), for one text (T, C), a position and a head at a time.

    With queries and keys normalised, as this ladder's rung 11 adds; their pairs are turned as complex numbers. As in
    rung 14 if the weights have shares: what comes in is joined by what came before, and the values by the `first` ones.
    Returns the values of all positions as well.
    """

    def norm(vector, gain):
        return vector / np.sqrt(np.mean(vector**2) + np.finfo(np.float64).eps) * gain

    def turned(vector, position):
        d = len(vector)
        pairs = vector[: d // 2] + 1j * vector[d // 2 :]
        return pairs * np.exp(1j * position * 10_000.0 ** (-np.arange(0, d, 2) / d))

    def joined(vectors, t, name):
        shares = weights.get(f"{name}.shares", np.ones((1, width)))
        return sum(share * vectors[t - back] for back, share in enumerate(shares) if back <= t)

    length, width = x.shape
    d = width // n_head
    to_q, to_k, to_v = np.split(weights["attention.qkv.weight"], 3)
    to_gate, to_up = np.split(weights["feed_forward.up.weight"], 2)
    normed = [norm(x[t], weights["norm1.weight"]) for t in range(length)]
    normed = [joined(normed, t, "nearby1") for t in range(length)]
    own_values = [to_v @ vector for vector in normed]
    of_first, of_own = weights.get("attention.shares", (0.0, 1.0))
    values = [of_first * a + of_own * b for a, b in zip(first or own_values, own_values, strict=True)]
    inner, out = [], np.empty_like(x)
    for t in range(length):
        heard = []
        for head in range(n_head):
            own = slice(head * d, (head + 1) * d)
            q = turned(norm(to_q[own] @ normed[t], weights["attention.q_norm.weight"]), t)
            keys = [turned(norm(to_k[own] @ normed[s], weights["attention.k_norm.weight"]), s) for s in range(t + 1)]
            shares = np.exp([np.sum(q * k.conj()).real / np.sqrt(d) for k in keys])
            heard.append(sum(share * values[s][own] for s, share in enumerate(shares)) / shares.sum())
        out[t] = x[t] + weights["attention.proj.weight"] @ np.concatenate(heard)
        inner.append(norm(out[t], weights["norm2.weight"]))
        seen = joined(inner, t, "nearby2")
        gate = to_gate @ seen
        gated = gate / (1 + np.exp(-gate)) * (to_up @ seen)
        out[t] = out[t] + weights["feed_forward.down.weight"] @ gated
    return out, own_values


@torch.no_grad()
def test_a_block_of_rung_12_is_llamas(small):
    torch.manual_seed(0)
    block = swiglu.Block(small(swiglu)).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    weights = {name: parameter.numpy() for name, parameter in block.named_parameters()}
    x = torch.randn(1, T, C, dtype=torch.float64)
    np.testing.assert_allclose(block(x)[0].numpy(), llama_block(x[0].numpy(), weights, H)[0], atol=1e-5)


@torch.no_grad()
def test_two_blocks_of_rung_14_share_the_first_ones_values_and_look_at_what_came_before(small):
    torch.manual_seed(0)
    blocks = [modern.Block(small(modern)).double().eval() for _ in range(2)]
    ours = theirs = torch.randn(1, T, C, dtype=torch.float64)
    theirs, first, values = theirs[0].numpy(), None, None
    for block in blocks:
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.5)
        ours, first = block(ours, first)
        weights = {name: parameter.numpy() for name, parameter in block.named_parameters()}
        theirs, own_values = llama_block(theirs, weights, H, values)
        values = values or own_values
    np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_the_gated_feed_forward_is_no_larger(small):
    def size(module):
        return sum(parameter.numel() for parameter in module.FeedForward(module.Config()).parameters())

    assert size(swiglu) == size(rms_norm)


@pytest.mark.parametrize("shape", [(24, 24), (24, 72), (72, 24)], ids=str)
def test_muons_update_is_nearly_orthogonal(shape):
    """Singular values near one, singular vectors as they were, whatever the strengths were."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator))
    strengths = torch.logspace(0, -2, min(shape))
    made, other = muon.orthogonal(torch.stack([u * strengths @ v.mT, torch.ones(shape)]))
    assert torch.linalg.matrix_rank(other) == 1  # each for itself
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.65 and values.max() < 1.25
    between = u.mT @ made @ v
    same(between, between.diagonal().diag())


@pytest.mark.parametrize("stacked", [1, 3])
def test_muon_is_torchs_own_but_for_its_precision(stacked):
    """Which works in bf16: the same updates to two parts in a hundred, over several steps with momentum and decay."""
    torch.manual_seed(0)
    start, gradients = torch.randn(48, 24), torch.randn(5, 48, 24)
    ours, theirs = nn.Parameter(start.clone()), [nn.Parameter(part.clone()) for part in start.chunk(stacked)]
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has none yet")
    optimizer = muon.Muon([{"params": [ours], "stacked": stacked}], **settings)
    torchs = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad = gradient
        optimizer.step()
        for parameter, part in zip(theirs, gradient.chunk(stacked), strict=True):
            parameter.grad = part
        torchs.step()
    moved = (torch.cat(theirs) - start).norm()
    assert moved > 0.4
    assert (ours - torch.cat(theirs)).norm() < 0.02 * moved


def test_muon_has_the_blocks_matrices_and_adamw_the_rest(small):
    model = muon.LanguageModel(65, small(muon))
    matrices, rest = (
        {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in model.optimizers(small(muon))
    )
    names = {name for name, parameter in model.named_parameters() if id(parameter) in matrices}
    ends = {"attention.qkv.weight", "attention.proj.weight", "feed_forward.up.weight", "feed_forward.down.weight"}
    assert names == {f"blocks.{number}.{end}" for number in range(3) for end in ends}
    assert rest == {id(parameter) for parameter in model.parameters()} - matrices


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
