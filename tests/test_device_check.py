"""A device with other results than the CPU is refused. The tests simulate such a device."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import rung_id
from torch.overrides import TorchFunctionMode

import gpt
from data import UserError
from stages import modern, pre_norm
from training.device_check import check_device
from training.run import set_up


class Corruption(TorchFunctionMode):
    """Replaces one function of torch, by its name, with `change(function, *args, **kwargs)`."""

    def __init__(self, name, change):
        super().__init__()
        self.name, self.change = name, change

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") == self.name:
            return self.change(function, *args, **kwargs)
        return function(*args, **kwargs)


def on_faulty_device(module, name, change, corpus, config):
    """The rung's model as on a faulty device: its results are wrong, but correct once it is on the CPU."""

    class Model(module.LanguageModel):
        on_cpu = False

        def cpu(self):
            self.on_cpu = True
            return super().cpu()

        def forward(self, idx):
            if self.on_cpu:
                return super().forward(idx)
            with Corruption(name, change):
                return super().forward(idx)

    torch.manual_seed(0)
    return Model(corpus.tokenizer.vocab_size, config)


def scaled(function, *args, **kwargs):
    return function(*args, **kwargs) * 1.05


def wrong_gradient(function, *args, **kwargs):
    y = function(*args, **kwargs)
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 1.05)
    return y


def stale(function, x, *args, **kwargs):
    """As if a copy had been read too early: one number of the result is an old value."""
    y = function(x, *args, **kwargs).clone()
    y[0, -1, -1] = 0.0
    return y


WRONG = [(pre_norm, "softmax", scaled), (gpt, "linear", stale), (modern, "rms_norm", wrong_gradient)]


@pytest.mark.parametrize(("rung", "name", "change"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_one_wrong_operator_is_found(rung, name, change, corpus, small):
    config = small(rung)
    model = on_faulty_device(rung, name, change, corpus, config)
    with pytest.raises(UserError, match="gradients of" if change is wrong_gradient else "logits") as error:
        check_device(model, corpus, config, "fp32")
    assert "--device cpu" in str(error.value) and "--skip-device-check" in str(error.value)


@pytest.mark.parametrize("rung", [gpt, modern], ids=rung_id)
def test_a_correct_device_passes_and_the_model_is_unchanged(rung, corpus, small):
    config = small(rung)
    for precision in ("fp32", "bf16"):
        model = rung.LanguageModel(corpus.tokenizer.vocab_size, config)
        before = [parameter.clone() for parameter in model.parameters()]
        state = torch.get_rng_state()
        check_device(model, corpus, config, precision)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(state, torch.get_rng_state()) and model.training


def test_a_frozen_parameter_is_left_out_of_the_check(corpus, small):
    config = small(pre_norm)
    model = pre_norm.LanguageModel(corpus.tokenizer.vocab_size, config)
    model.position_embedding.requires_grad_(False)
    check_device(model, corpus, config, "fp32")
    faulty = on_faulty_device(pre_norm, "softmax", scaled, corpus, config)
    faulty.position_embedding.requires_grad_(False)
    with pytest.raises(UserError, match="fails its check"):
        check_device(faulty, corpus, config, "fp32")


def test_attention_to_later_characters_in_the_runs_precision_is_found(corpus, small):
    """Attention in half precision under no_grad has had this error (pytorch/pytorch 195910). In fp32 it is correct."""
    config = small(gpt)

    def leak(function, x, *args, **kwargs):  # a little of the attention weights is spread over all positions
        y = function(x, *args, **kwargs)
        leaks = torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        return 0.99 * y + 0.01 / y.shape[-1] if leaks else y

    model = on_faulty_device(gpt, "softmax", leak, corpus, config)
    check_device(model, corpus, config, "fp32")
    with pytest.raises(UserError, match=r"later characters.*--precision fp32"):
        check_device(model, corpus, config, "bf16")


def test_a_run_on_another_device_is_checked_unless_the_check_is_skipped(tmp_path, text_file, monkeypatch):
    def refuse(*args):
        raise UserError("it fails its check")

    monkeypatch.setattr(sys.modules["training.run"], "check_device", refuse)
    places = {"corpus": str(text_file), "runs_dir": tmp_path, "loss_csv": tmp_path / "log.csv"}
    model, config, other = pre_norm.LanguageModel, pre_norm.Config(**places), torch.device("meta")
    set_up(model, config, torch.device("cpu"))  # the CPU needs no check
    with pytest.raises(UserError, match="fails its check"):
        set_up(model, config, other)
    set_up(model, replace(config, skip_device_check=True), other)
