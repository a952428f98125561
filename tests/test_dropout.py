"""Dropout with 8-bit random numbers: its probability, its mean, its independence."""

import pytest
import torch

from training.dropout import Dropout, seed_dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.75])
def test_dropout_drops_with_probability_p_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)  # a size that the draws of 8 do not divide
    y = Dropout(p).train()(x)
    rounded = round(256 * p) / 256
    assert (y == 0).double().mean().item() == pytest.approx(rounded, abs=0.002)  # four standard errors
    assert y.double().mean().item() == pytest.approx(1, abs=0.007)
    assert y.shape == x.shape and torch.allclose(y[y != 0], torch.tensor(1 / (1 - rounded)))
    assert Dropout(p).eval()(x) is x


def test_neighbouring_elements_and_repeated_calls_are_independent():
    torch.manual_seed(0)
    layer, x = Dropout(0.5).train(), torch.ones(2**20)
    one, two = layer(x) == 0, layer(x) == 0
    for a, b in [(one[:-gap], one[gap:]) for gap in (1, 2, 7, 8, 9, 64)] + [(one, two)]:
        assert (a & b).double().mean().item() == pytest.approx(0.25, abs=0.003)  # seven standard errors


def test_the_dropout_mask_depends_on_seed_step_and_rank_alone():
    layer, x = Dropout(0.5).train(), torch.ones(4096)

    def dropped(*numbers):
        torch.rand(3)  # earlier draws change nothing
        seed_dropout(torch.device("cpu"), *numbers)
        return layer(x) == 0

    first = dropped(1, 2, 0)
    assert torch.equal(first, dropped(1, 2, 0))
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1), (2, 1, 0)):
        assert (first == dropped(*other)).float().mean().item() == pytest.approx(0.5, abs=0.05)  # independent
