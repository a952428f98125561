"""`ablation --without PART` is modern with that part replaced by what was there before it."""

import pytest
import torch
from torch import nn

from stages import ablation, modern, qk_norm, value_residual

VOCAB = 65


class Positioned(nn.Module):
    """Token embeddings plus position embeddings."""

    def __init__(self, tokens, positions):
        super().__init__()
        self.tokens, self.positions = tokens, positions

    def forward(self, idx):
        return self.tokens(idx) + self.positions.weight[: idx.shape[1]]


def without_rotary(model, theirs, config):
    model.rotary = torch.stack([torch.ones_like(model.rotary[0]), torch.zeros_like(model.rotary[1])])  # angles of zero
    model.token_embedding = Positioned(model.token_embedding, theirs.position_embedding)


def without_rms_norm(model, theirs, config):
    model.final_norm = nn.LayerNorm(config.n_embd)
    for block in model.blocks:
        block.norm1, block.norm2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)


def without_qk_norm(model, theirs, config):
    for block in model.blocks:
        block.attention.q_norm = block.attention.k_norm = nn.Identity()


def without_swiglu(model, theirs, config):
    for block, their in zip(model.blocks, theirs.blocks, strict=True):
        block.feed_forward = qk_norm.FeedForward(config)
        block.feed_forward.net[0], block.feed_forward.net[2] = their.feed_forward.up, their.feed_forward.down


def without_value_residual(model, theirs, config):
    for block in model.blocks:
        block.attention.value_lambdas.data = torch.tensor([0.0, 1.0])


def without_short_conv(model, theirs, config):
    for block in model.blocks:
        block.conv1 = block.conv2 = nn.Identity()


@pytest.mark.parametrize(
    "remove",
    [without_rotary, without_rms_norm, without_qk_norm, without_swiglu, without_value_residual, without_short_conv],
)
def test_ablation_replaces_one_part_of_modern_and_nothing_else(remove, small):
    config = small(ablation, without=remove.__name__.removeprefix("without_"))
    torch.manual_seed(0)
    model, ours = modern.LanguageModel(VOCAB, small(modern)), ablation.LanguageModel(VOCAB, config)
    with torch.no_grad():
        for weight in (*model.parameters(), *ours.parameters()):
            weight.add_(torch.randn_like(weight), alpha=0.1)
        for name, weight in ours.named_parameters():  # modern has no biases; at zero they change nothing
            if name.endswith("bias"):
                weight.zero_()
    shared = {
        n: w for n, w in ours.state_dict().items() if n in model.state_dict() and w.shape == model.state_dict()[n].shape
    }
    model.load_state_dict(shared, strict=False)
    idx = torch.randint(VOCAB, (2, 8))
    assert not torch.allclose(ours(idx), model(idx), atol=1e-2)
    remove(model, ours, config)
    if remove is without_rms_norm:  # the new LayerNorms need the same gains
        model.load_state_dict({n: w for n, w in shared.items() if "norm" in n}, strict=False)
    torch.testing.assert_close(ours(idx), model(idx), atol=1e-5, rtol=0)


def test_without_short_conv_ablation_equals_the_rung_before_modern(small):
    logits = []
    for rung in (ablation, value_residual):
        torch.manual_seed(0)
        logits.append(rung.LanguageModel(VOCAB, small(rung))(torch.arange(8)[None]))
    assert torch.equal(*logits)


def test_without_muon_adamw_trains_every_weight(small):
    config = small(ablation, without="muon")
    (optimizer,) = ablation.LanguageModel(VOCAB, config).optimizers(config)
    assert isinstance(optimizer, torch.optim.AdamW)
