"""The rungs' parts against independent versions: torch's layers, equations in numpy, counted pairs."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import bigram
import gpt
from helper_scripts.reference import Reference
from stages import (
    feed_forward,
    modern,
    multi_head,
    muon,
    post_norm,
    pre_norm,
    previous_token,
    qk_norm,
    residual,
    rms_norm,
    rotary,
    self_attention,
    swiglu,
    value_residual,
)
from training.evaluate import exact_loss
from training.loop import train
from training.state import State
from training.update import apply_update, autocast

C, H, B, T = 32, 4, 5, 8
LATER = torch.ones(T, T, dtype=torch.bool).triu(1)
MASK = torch.zeros(T, T).masked_fill(LATER, float("-inf"))


def name(rung) -> str:
    return rung.__name__


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(0))


def test_one_head_equals_torchs_attention(small, x):
    attention = self_attention.SelfAttention(small(self_attention))
    q, k, v = F.linear(x, attention.qkv.weight).split(C, dim=-1)
    assert_close(attention(x, MASK), F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("rung", [multi_head, residual, gpt], ids=name)
def test_several_heads_equal_torchs_multi_head_attention(rung, small, x):
    attention = rung.SelfAttention(small(rung)).eval()
    torchs = nn.MultiheadAttention(C, H, batch_first=True)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(attention.qkv.weight)
        torchs.out_proj.load_state_dict(attention.proj.state_dict())
    assert_close(attention(x, MASK), torchs(x, x, x, attn_mask=LATER, need_weights=False)[0])


@pytest.mark.parametrize("rung", [post_norm, pre_norm, gpt], ids=name)
def test_a_block_equals_torchs_encoder_layer(rung, small, x):
    block = rung.Block(small(rung)).eval()
    layer = nn.TransformerEncoderLayer(C, H, 4 * C, dropout=0.0, batch_first=True, norm_first=rung is not post_norm)
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):  # initial LayerNorms are all equal
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        layer.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
        layer.self_attn.in_proj_bias.zero_()
    theirs = (layer.self_attn.out_proj, layer.linear1, layer.linear2, layer.norm1, layer.norm2)
    ours = (block.attention.proj, block.feed_forward.net[0], block.feed_forward.net[2], block.norm1, block.norm2)
    for one, other in zip(theirs, ours, strict=True):
        one.load_state_dict(other.state_dict())
    assert_close(block(x, MASK), layer(x, src_mask=LATER))


def test_a_residual_block_adds_its_input_and_a_plain_block_does_not(small, x):
    plain, added = feed_forward.Block(small(feed_forward)), residual.Block(small(residual))
    with torch.no_grad():
        for block in (plain, added):
            for parameter in block.parameters():
                parameter.zero_()
    assert plain(x, MASK).abs().max() == 0
    assert torch.equal(added(x, MASK), x)


@pytest.fixture
def gpt_and_reference(small):
    """Rung 8 and the plain version of the same architecture, with the same random weights."""
    config = small(gpt)
    torch.manual_seed(0)
    model = gpt.LanguageModel(65, config)
    reference = Reference(65, n_embd=C, n_head=H, n_layer=config.n_layer, block_size=T, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        copied = [(reference.token_embedding, model.token_embedding), (reference.norm, model.final_norm)]
        copied += [(reference.position_embedding, model.position_embedding), (reference.head, model.lm_head)]
        for theirs, ours in zip(reference.blocks, model.blocks, strict=True):
            copied += [(theirs.norm1, ours.norm1), (theirs.norm2, ours.norm2)]
            copied += [(theirs.attention.proj, ours.attention.proj)]
            copied += [(theirs.wide, ours.feed_forward.net[0]), (theirs.narrow, ours.feed_forward.net[2])]
            for weight, part in zip(ours.attention.qkv.weight.split(C), ("query", "key", "value"), strict=True):
                for head, rows in zip(theirs.attention.heads, weight.split(C // H), strict=True):
                    getattr(head, part).weight.copy_(rows)
        for theirs, ours in copied:
            theirs.load_state_dict(ours.state_dict())
    return model, reference, copied


def test_rung_8_equals_the_plain_reference(gpt_and_reference):
    model, reference, copied = gpt_and_reference
    idx, targets = torch.randint(65, (2, B, T), generator=torch.Generator().manual_seed(1))
    logits = model(idx)
    theirs, loss = reference(idx, targets)
    assert_close(logits, theirs)
    loss.backward()
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for one, two in copied:
        for parameter, copy in zip(one.parameters(), two.parameters(), strict=True):
            assert_close(copy.grad, parameter.grad)
    for block, plain in zip(model.blocks, reference.blocks, strict=True):
        heads = plain.attention.heads
        parts = [getattr(head, part).weight.grad for part in ("query", "key", "value") for head in heads]
        assert_close(block.attention.qkv.weight.grad, torch.cat(parts))


@torch.no_grad()
def test_the_exact_loss_is_what_random_batches_estimate(gpt_and_reference, corpus):
    model, reference, _ = gpt_and_reference
    losses = [reference(*corpus.batch(0, step, 16, T))[1].item() for step in range(200)]
    assert sum(losses) / 200 == pytest.approx(exact_loss(model, corpus.train, T), abs=0.05)


@torch.no_grad()
def attended_by_distance(rung, **settings) -> torch.Tensor:
    """The mean attention weight of each head of an untrained block at distances 0, 1, ... 31, (H, 32)."""
    config = rung.Config(n_layer=1, **settings)
    torch.manual_seed(0)
    model = rung.LanguageModel(65, config).eval()
    text = torch.randint(65, (64,), generator=torch.Generator().manual_seed(1))
    x = model.blocks[0].norm1(model.token_embedding(text) + model.position_embedding.weight[:64])
    q, k, _ = (x @ model.blocks[0].attention.qkv.weight.T).view(64, 3, config.n_head, -1).permute(1, 2, 0, 3)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.masked_fill(torch.ones(64, 64).triu(1) > 0, float("-inf")).softmax(dim=-1)
    return torch.stack([weights.diagonal(-distance, 1, 2).mean(dim=1) for distance in range(32)], dim=1)


@pytest.mark.parametrize("sizes", [{}, {"n_head": 8, "n_embd": 128}, {"n_head": 1}], ids=str)
def test_untrained_previous_token_heads_attend_to_the_previous_characters(sizes):
    weights = attended_by_distance(previous_token, **sizes)
    assert weights.argmax(dim=1).tolist() == list(range(1, len(weights) + 1))
    assert weights.max(dim=1).values.min() > 0.15
    assert attended_by_distance(gpt, **sizes)[:, 1:].max() < 0.1  # rung 8's heads attend to all positions alike


def complex_rotation(x: torch.Tensor) -> torch.Tensor:
    """Each pair of channels is a complex number, multiplied by exp(i * position * frequency) (Su et al., 2021)."""
    time, d = x.shape[-2:]
    frequencies = 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    rotated = torch.complex(*x.chunk(2, dim=-1)) * torch.exp(1j * torch.arange(time)[:, None] * frequencies)
    return torch.cat([rotated.real, rotated.imag], dim=-1).to(x.dtype)


def mask_cos_sin(rung) -> tuple[torch.Tensor, ...]:
    """The other arguments of a rotary rung's attention, after its input."""
    angles = rung.rotary_angles(T, C // H)
    return MASK, angles.cos(), angles.sin()


@torch.no_grad()
def test_rotary_heads_equal_torchs_attention_on_rotated_queries_and_keys(small, x):
    attention = rotary.SelfAttention(small(rotary)).eval()
    q, k, v = (part.view(B, T, H, C // H).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    theirs = F.scaled_dot_product_attention(complex_rotation(q), complex_rotation(k), v, is_causal=True)
    assert_close(attention(x, *mask_cos_sin(rotary)), attention.proj(theirs.transpose(1, 2).flatten(2)))


def test_rms_norm_divides_by_the_root_mean_square_and_there_are_no_biases(small, x):
    model = rms_norm.LanguageModel(65, small(rms_norm))
    assert not any(parameter.endswith("bias") for parameter, _ in model.named_parameters())
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 2 * 3 + 1  # two in each block, and the final one
    for norm in norms:
        nn.init.normal_(norm.weight)
        assert_close(
            norm(x), x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * norm.weight
        )


@pytest.mark.parametrize("rung", [qk_norm, modern], ids=name)
def test_normalised_queries_give_no_warning_in_bf16(rung, small):
    model = rung.LanguageModel(65, small(rung))
    torch.set_warn_always(True)  # not just the first time in this process
    try:
        with warnings.catch_warnings(action="error"), autocast(torch.device("cpu"), "bf16"):
            assert model(torch.zeros(2, T, dtype=torch.long)).isfinite().all()
    finally:
        torch.set_warn_always(False)


def llama_block(
    x: np.ndarray, weights: dict[str, np.ndarray], first_values: list[np.ndarray] | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A block by the equations of LLaMA (Touvron et al., 2023), for one text (T, C), a position and a head at a time.

    Queries and keys are normalised. Values are mixed with `first_values` if the weights have lambdas for that. If the
    weights have convolutions, channels are mixed with those of the characters before. Returns the values as well.
    """

    def norm(vector, gain):
        return vector / np.sqrt(np.mean(vector**2) + np.finfo(np.float32).eps) * gain

    def rotated(vector, position):
        pairs = vector[: d // 2] + 1j * vector[d // 2 :]
        return pairs * np.exp(1j * position * 10_000.0 ** (-np.arange(0, d, 2) / d))

    def convolved(vectors, t, part):
        kernel = weights.get(f"{part}.conv.weight", np.ones((C, 1, 1)))[:, 0]  # (C, 4), the last column for position t
        return sum(weight * vectors[t - back] for back, weight in enumerate(kernel.T[::-1]) if back <= t)

    d = C // H
    to_q, to_k, to_v = np.split(weights["attention.qkv.weight"], 3)
    to_gate, to_up = weights["feed_forward.gate.weight"], weights["feed_forward.up.weight"]
    normed = [norm(vector, weights["norm1.weight"]) for vector in x]
    normed = [convolved(normed, t, "conv1") for t in range(T)]
    own_values = [to_v @ vector for vector in normed]
    of_first, of_own = weights.get("attention.value_lambdas", (0.0, 1.0))
    values = [of_first * a + of_own * b for a, b in zip(first_values or own_values, own_values, strict=True)]
    inner, out = [], np.empty_like(x)
    for t in range(T):
        heads = []
        for head in range(H):
            own = slice(head * d, (head + 1) * d)
            q = rotated(norm(to_q[own] @ normed[t], weights["attention.q_norm.weight"]), t)
            keys = [rotated(norm(to_k[own] @ normed[s], weights["attention.k_norm.weight"]), s) for s in range(t + 1)]
            attended = np.exp([np.sum(q * k.conj()).real / np.sqrt(d) for k in keys])
            heads.append(sum(weight * values[s][own] for s, weight in enumerate(attended)) / attended.sum())
        out[t] = x[t] + weights["attention.proj.weight"] @ np.concatenate(heads)
        inner.append(norm(out[t], weights["norm2.weight"]))
        seen = convolved(inner, t, "conv2")
        gate = to_gate @ seen
        out[t] = out[t] + weights["feed_forward.down.weight"] @ (gate / (1 + np.exp(-gate)) * (to_up @ seen))
    return out, own_values


@pytest.mark.parametrize("rung", [swiglu, value_residual, modern], ids=name)
@torch.no_grad()
def test_two_blocks_equal_llamas_with_what_the_rung_adds(rung, small):
    torch.manual_seed(0)
    rest = mask_cos_sin(rung)
    ours = torch.randn(1, T, C)
    theirs, first, values = ours[0].double().numpy(), None, None
    for _ in range(2):
        block = rung.Block(small(rung)).eval()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.5)
        ours, first = (block(ours, *rest), None) if rung is swiglu else block(ours, first, *rest)
        weights = {part: parameter.double().numpy() for part, parameter in block.named_parameters()}
        theirs, own_values = llama_block(theirs, weights, values)
        values = values or own_values
    np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (24, 72), (72, 24)], ids=str)
def test_newton_schulz_brings_singular_values_near_one(shape):
    """The singular vectors do not change. Each matrix of a batch is treated separately."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=generator))
    strengths = torch.logspace(0, -2, min(shape))
    made, other = muon.newton_schulz(torch.stack([u * strengths @ v.mT, torch.ones(shape)]))
    assert torch.linalg.matrix_rank(other) == 1
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.65 and values.max() < 1.25
    between = u.mT @ made @ v
    assert_close(between, between.diagonal().diag())


class MatmulDtypes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.seen.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("stacked", "precision"), [(1, "fp32"), (3, "fp32"), (3, "bf16")])
def test_muon_updates_like_torchs_muon(stacked, precision):
    """torch's Muon always uses bf16, so updates agree within 2%, over steps with momentum and weight decay."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    start, gradients = torch.randn(48, 24), torch.randn(5, 48, 24)
    ours, theirs = nn.Parameter(start.clone()), [nn.Parameter(part.clone()) for part in start.chunk(stacked)]
    optimizer = muon.Muon([{"params": [ours], "stacked": stacked}], weight_decay=0.1)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    with MatmulDtypes() as dtypes:
        for gradient in gradients:
            ours.grad = gradient
            apply_update([optimizer], 0.02, torch.device("cpu"), precision)
    assert dtypes.seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert ours.dtype == torch.float32
    for gradient in gradients:
        for parameter, part in zip(theirs, gradient.chunk(stacked), strict=True):
            parameter.grad = part
        torchs.step()
    moved = (torch.cat(theirs) - start).norm()
    assert moved > 0.4
    assert (ours - torch.cat(theirs)).norm() < 0.02 * moved


def test_muon_trains_the_blocks_matrices_and_adamw_the_rest(small):
    model = muon.LanguageModel(65, small(muon))
    matrices, rest = (
        {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for optimizer in model.optimizers(small(muon))
    )
    names = {name for name, parameter in model.named_parameters() if id(parameter) in matrices}
    ends = {"attention.qkv.weight", "attention.proj.weight"}
    ends |= {f"feed_forward.{name}.weight" for name in ("gate", "up", "down")}
    assert names == {f"blocks.{number}.{end}" for number in range(3) for end in ends}
    assert rest == {id(parameter) for parameter in model.parameters()} - matrices


def test_a_trained_bigram_approaches_the_loss_of_counted_pairs(shakespeare):
    """The table has the counts of pairs in the train split, plus one each."""
    ids, val = shakespeare.train.numpy(), shakespeare.val.numpy()
    counts = np.ones((65, 65))
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    floor = float(-np.log((counts / counts.sum(axis=1, keepdims=True))[val[:-1], val[1:]]).mean())
    assert f"{floor:.3f}" in bigram.__doc__
    config = bigram.Config(eval_interval=10**9)
    model = bigram.LanguageModel(65, config)
    *_, last = train(State.at_start(model, config), shakespeare, config, "fp32", range(config.steps))
    assert abs(last.val_loss - floor) < 0.01
