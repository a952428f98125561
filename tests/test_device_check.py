"""A device that computes something else than the CPU must not get to train. No such device is needed to see that."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import rung_id
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import gpt
from data import UserError
from stages import pre_norm
from training import run
from training.device_check import check_device


class Corruption(TorchFunctionMode):
    """Puts `change(function, args, kwargs)` in the place of one function of torch, by name."""

    def __init__(self, name, change):
        super().__init__()
        self.name, self.change = name, change

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") == self.name:
            return self.change(function, *args, **kwargs)
        return function(*args, **kwargs)


def on_a_device(module, name, change):
    """The rung's model as a class: right on the CPU, and wrong where it was made, which stands for a device."""

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

    return Model


def shifted(function, *args, **kwargs):
    return function(*args, **kwargs) * 1.05


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.05


def wrong_gradient(function, *args, **kwargs):
    return WrongGradient.apply(function(*args, **kwargs))


def stale(function, x, *args, **kwargs):
    """As of a copy that was not waited for: one number of the result is whatever was there before."""
    y = function(x, *args, **kwargs).clone()
    y[0, -1, -1] = 0.0
    return y


def nans(function, *args, **kwargs):
    return function(*args, **kwargs) * float("nan")


WRONG = {
    "softmax": ("softmax", shifted, "logits"),
    "layer norm": ("layer_norm", shifted, "logits"),
    "linear": ("linear", stale, "logits"),
    "embedding": ("embedding", shifted, "logits"),
    "matmul": ("matmul", nans, "logits"),
    "gradient of softmax": ("softmax", wrong_gradient, "gradients of"),
    "gradient of relu": ("relu", wrong_gradient, "gradients of"),
    "gradient of layer norm": ("layer_norm", wrong_gradient, "gradients of"),
}


def model_of(model_class, corpus, config):
    torch.manual_seed(0)
    return model_class(corpus.tokenizer.vocab_size, config)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("module", [pre_norm, gpt], ids=rung_id)
def test_one_wrong_operator_is_caught(module, wrong, corpus, small):
    name, change, words = wrong
    config = small(module)
    with pytest.raises(UserError, match=words) as error:
        check_device(model_of(on_a_device(module, name, change), corpus, config), corpus, config, "fp32")
    assert "--device cpu" in str(error.value) and "--skip-device-check" in str(error.value)


def test_a_right_device_passes_and_nothing_is_changed(rung, corpus, small):
    config = small(rung)
    for precision in ("fp32", "bf16"):
        model = model_of(rung.LanguageModel, corpus, config)
        before = [parameter.clone() for parameter in model.parameters()]
        state = torch.get_rng_state()
        check_device(model, corpus, config, precision)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(state, torch.get_rng_state())
        assert model.training


def in_bf16_alone(leak):
    def change(function, x, *args, **kwargs):
        y = function(x, *args, **kwargs)
        return leak(y) if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled() else y

    return change


@pytest.mark.parametrize("module", [pre_norm, gpt], ids=rung_id)
def test_a_look_at_the_future_in_the_runs_own_precision_is_caught(module, corpus, small):
    """As attention in half precision under no_grad has done (pytorch/pytorch 195910): right in fp32."""
    config = small(module)

    def leak(y):  # the weights of attention, a little of them spread over all positions
        return 0.99 * y + 0.01 / y.shape[-1] if y.dim() == 4 else y

    model_class = on_a_device(module, "softmax", in_bf16_alone(leak))
    model = model_of(model_class, corpus, config)
    check_device(model, corpus, config, "fp32")
    with pytest.raises(UserError, match=r"later characters.*--precision fp32"):
        check_device(model, corpus, config, "bf16")


def test_what_starts_out_at_zero_hides_nothing(corpus, small):
    """Weights of zero behind attention make a leak in it invisible at first."""
    config = small(pre_norm)
    model_class = on_a_device(pre_norm, "softmax", lambda function, x, **kwargs: F.softmax(x.roll(1, -1), -1))
    model = model_of(model_class, corpus, config)
    for name, parameter in model.named_parameters():
        if "proj" in name or "net.2" in name:
            torch.nn.init.zeros_(parameter)
    with pytest.raises(UserError, match="logits"):
        check_device(model, corpus, config, "fp32")


def test_a_run_on_another_device_is_checked_unless_told_not_to(tmp_path, text_file, monkeypatch, capsys):
    run_module = sys.modules["training.run"]
    checked = []

    def refuse(*args):
        checked.append(args)
        raise UserError("mps fails its check")

    monkeypatch.setattr(run_module, "check_device", refuse)
    flags = ["--corpus", str(text_file), "--steps", "2", "--sample-length", "1", "--runs-dir", str(tmp_path)]
    flags += ["--loss-csv", str(tmp_path / "log.csv")]
    run(pre_norm.LanguageModel, pre_norm.Config, [*flags, "--device", "cpu"])  # which needs no check
    assert not checked

    monkeypatch.setattr(run_module, "TRUSTED", "none at all")
    with pytest.raises(SystemExit) as stop:
        run(pre_norm.LanguageModel, pre_norm.Config, [*flags, "--device", "cpu"])
    assert stop.value.code == 2 and len(checked) == 1
    assert "fails its check" in capsys.readouterr().err
    run(pre_norm.LanguageModel, pre_norm.Config, [*flags, "--device", "cpu", "--skip-device-check"])
    assert len(checked) == 1
