"""What is true of every rung on the ladder, a new one included."""

import math

import torch
from torch.nn import functional as F

import gpt
from training.state import State

VOCAB = 65


def make(rung, config, moved=False):
    """An untrained model; if moved, its weights are changed at random, as if trained, so that none is zero."""
    torch.manual_seed(0)
    model = rung.LanguageModel(VOCAB, config)
    if moved:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval() if moved else model


def random_ids(*shape):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


def test_logits_have_a_row_for_every_position_on_any_device(rung, small):
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = rung.LanguageModel(VOCAB, small(rung))
        for shape in ((1, 1), (3, 5), (2, 8)):
            logits = model(random_ids(*shape).to(device))
            assert (logits.shape, logits.dtype, logits.device.type) == ((*shape, VOCAB), torch.float32, device)


def test_the_loss_starts_near_that_of_a_uniform_guess(rung):
    config = rung.Config()
    model = make(rung, config).eval()
    rows = (16_384 if config.block_size == 8 else 1024) // config.block_size
    with torch.no_grad():
        logits = model(random_ids(rows, config.block_size))
    loss = F.cross_entropy(logits.flatten(0, 1), random_ids(rows * config.block_size).roll(1)).item()
    # on random characters a uniform guess is best; torch's initial weights, in rungs 2 to 7, are a little too confident
    assert math.log(VOCAB) - 0.01 < loss < math.log(VOCAB) + 0.6


def test_logits_do_not_depend_on_later_characters(rung, small):
    model = make(rung, small(rung), moved=True)
    idx = random_ids(2, 8)
    before = model(idx)
    for position in range(8):
        changed = idx.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCAB
        after = model(changed)
        assert torch.allclose(after[:, :position], before[:, :position], atol=1e-5)
        assert not torch.allclose(after[:, position], before[:, position], atol=1e-3)
        if position < 7:  # only a bigram ignores earlier characters
            is_bigram = rung.__name__ == "bigram"
            assert torch.allclose(after[:, position + 1 :], before[:, position + 1 :], atol=1e-3) == is_bigram


def test_every_parameter_gets_a_gradient_and_is_trained_by_one_optimizer(rung, small):
    model = make(rung, small(rung), moved=True)
    F.cross_entropy(model(random_ids(16, 8)).flatten(0, 1), random_ids(16 * 8)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    optimizers = State.at_start(model, small(rung)).optimizers
    trained = [id(parameter) for each in optimizers for group in each.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())


def test_rung_8_has_about_10_8_million_parameters():
    with torch.device("meta"):
        model = gpt.LanguageModel(VOCAB, gpt.Config())
    assert 10.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 10.9e6
