"""What holds for every rung on the ladder, a new one included."""

import math

import pytest
import torch
from torch.nn import functional as F

from data import UserError
from training.state import State

VOCAB = 65


def make(rung, config, shaken=False):
    """A model as it starts; shaken, as it might be after some training, when nothing is zero any more."""
    torch.manual_seed(0)
    model = rung.LanguageModel(VOCAB, config)
    if shaken:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval() if shaken else model


def random_ids(*shape):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 5), (2, 8)])
def test_logits_have_a_row_for_every_position(rung, small, batch, time):
    logits = make(rung, small(rung))(random_ids(batch, time))
    assert logits.shape == (batch, time, VOCAB)
    assert logits.dtype == torch.float32


def test_the_loss_starts_near_that_of_a_uniform_guess(rung):
    config = rung.Config()
    model = make(rung, config).eval()
    rows = (16_384 if config.block_size == 8 else 4096) // config.block_size
    with torch.no_grad():
        logits = model(random_ids(rows, config.block_size))
    loss = F.cross_entropy(logits.flatten(0, 1), random_ids(rows * config.block_size).roll(1)).item()
    # no guess beats it on noise; torch's own starting weights, which rungs 2 to 7 keep, make the first a bit too sure
    assert math.log(VOCAB) - 0.01 < loss < math.log(VOCAB) + 0.6


def test_no_logit_changes_when_a_later_character_does(rung, small):
    model = make(rung, small(rung), shaken=True)
    idx = random_ids(2, 8)
    before = model(idx)
    for position in range(8):
        changed = idx.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCAB
        after = model(changed)
        assert torch.allclose(after[:, :position], before[:, :position], atol=1e-5)
        assert not torch.allclose(after[:, position], before[:, position], atol=1e-3)


def test_every_parameter_gets_a_gradient(rung, small):
    model = make(rung, small(rung), shaken=True)  # where a part starts at zero, nothing before it has one yet
    F.cross_entropy(model(random_ids(16, 8)).flatten(0, 1), random_ids(16 * 8)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_every_parameter_is_trained_by_one_optimizer(rung, small):
    model = make(rung, small(rung))
    optimizers = State.at_start(model, small(rung)).optimizers
    trained = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
    assert len(trained) == len(list(model.parameters()))
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.parameters()}


def test_one_batch_can_be_learnt_by_heart(rung, small):
    model = make(rung, small(rung))
    # each row a walk through the alphabet: the next character follows from the last, so that a table can learn it too
    text = torch.tensor([[0], [20]]) + torch.arange(9)
    idx, targets = text[:, :-1], text[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3 * rung.Config().learning_rate)
    for _ in range(1000):
        loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # a single head gets no further: it ends up looking at one place, and two of the 16 look alike there
        if loss.item() < 0.2:
            return
    pytest.fail(f"the loss is still {loss.item():.3f}")


def test_only_a_table_is_blind_to_what_came_before(rung, small):
    model = make(rung, small(rung), shaken=True)
    here, there = model(torch.tensor([[1, 2, 3], [4, 5, 3]]))[:, -1]
    assert torch.allclose(here, there, atol=1e-3) == (rung.__name__ == "bigram")


def test_nothing_is_pinned_to_a_device(rung, small):
    with torch.device("meta"):
        model = rung.LanguageModel(VOCAB, small(rung))
    logits = model(torch.zeros(2, 8, dtype=torch.long, device="meta"))
    assert logits.device.type == "meta"
    assert logits.shape == (2, 8, VOCAB)


def test_the_same_seed_makes_the_same_weights(rung, small):
    first, second = make(rung, small(rung)), make(rung, small(rung))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_heads_whose_numbers_are_paired_have_an_even_number_of_them():
    from stages import rotary

    with pytest.raises(UserError, match="3 numbers, which cannot be paired; try --n-embd 16"):
        rotary.Config(n_embd=12, n_head=4)
    make(rotary, rotary.Config(n_embd=16, n_head=4))(random_ids(1, 8))


def test_the_scaled_up_rung_has_the_size_it_claims():
    import gpt

    with torch.device("meta"):
        model = gpt.LanguageModel(VOCAB, gpt.Config())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 10.7e6 < parameters < 10.9e6
