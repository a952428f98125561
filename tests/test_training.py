"""The loop and its losses against sums by hand, the settings' hash, and the choice of device and precision."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import gpt
from data import UserError, read_log
from stages import feed_forward, modern, pre_norm, self_attention
from training import TrainConfig, run
from training.config import config_hash
from training.device import choose_device, choose_precision, processor
from training.evaluate import exact_loss
from training.generation import generate
from training.loop import train
from training.optimizers import make_optimizers
from training.schedule import learning_rate
from training.state import State
from training.update import apply_update

CPU = torch.device("cpu")


def trained(rung, corpus, config, precision="fp32"):
    torch.manual_seed(config.seed)
    model = rung.LanguageModel(corpus.tokenizer.vocab_size, config)
    return model, list(train(State.at_start(model, config), corpus, config, precision, range(config.steps)))


def flags(folder, text_file) -> list[str]:
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
    return [*places, "--sample-length", "1", "--device", "cpu"]


@pytest.mark.parametrize("n", [9, 16, 100])  # one window exactly, two less a character, and many
def test_the_exact_loss_equals_a_sum_by_hand(n, corpus, small, monkeypatch):
    model = pre_norm.LanguageModel(corpus.tokenizer.vocab_size, small(pre_norm))
    ids, block_size = corpus.val[:n], 8
    total = 0.0
    for target in range(1, n):
        start = (target - 1) // block_size * block_size  # of the window that predicts this character
        logits = model(ids[start:target].long()[None])[0, -1].double()
        total += (logits.exp().sum().log() - logits[ids[target].long()]).item()
    for at_once in (4096, 24):  # all windows in one forward pass, and three
        monkeypatch.setattr("training.evaluate.TOKENS_AT_ONCE", at_once)
        assert exact_loss(model, ids, block_size) == pytest.approx(total / (n - 1), abs=1e-6)


def watch(monkeypatch, see) -> set:
    """Collects `see(training, idx, logits)` for each forward pass of gpt.py."""
    seen, forward = set(), gpt.LanguageModel.forward

    def watched(model, idx):
        logits = forward(model, idx)
        seen.add(see(model.training, idx, logits))
        return logits

    monkeypatch.setattr(gpt.LanguageModel, "forward", watched)
    return seen


def test_bf16_trains_in_bf16_and_evaluates_in_fp32(corpus, small, monkeypatch):
    seen = watch(monkeypatch, lambda training, idx, logits: (training, logits.dtype))
    model, (first, *_, last) = trained(gpt, corpus, small(gpt, steps=30, learning_rate=1e-2), "bf16")
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert last.val_loss == exact_loss(model, corpus.val, 8) < first.val_loss - 0.3
    assert last.train_loss == exact_loss(model, corpus.train[: len(corpus.val) // 4], 8)


def test_evaluating_does_not_change_training(corpus, small):
    config = small(gpt, steps=12, dropout=0.3)
    (_, evaluations), (_, others) = (trained(gpt, corpus, replace(config, eval_interval=n)) for n in (5, 99))
    assert [evaluation.step for evaluation in evaluations] == [0, 5, 10, 12]
    assert [evaluation.step for evaluation in others] == [0, 12]
    assert evaluations[-1].val_loss == others[-1].val_loss


def test_the_loop_equals_plain_adamw_on_the_same_batches(corpus, small):
    shape = {"learning_rate": 1e-2, "schedule": "linear", "weight_decay": 0.5, "beta2": 0.9, "sampling": "epoch"}
    config = small(self_attention, steps=5, **shape)
    model, _ = trained(self_attention, corpus, config)
    torch.manual_seed(config.seed)
    other = self_attention.LanguageModel(corpus.tokenizer.vocab_size, config)
    groups = [[], []]
    for name, parameter in other.named_parameters():
        groups["embedding" in name or "bias" in name].append(parameter)
    groups = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (0.5, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.9), foreach=False)
    for step, rate in enumerate((1e-2, 8e-3, 6e-3, 4e-3, 2e-3)):
        idx, targets = corpus.batch(config.seed, step, config.batch_size, config.block_size, "epoch")
        optimizer.zero_grad()
        (-other(idx).log_softmax(dim=-1).gather(-1, targets[..., None]).mean()).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rung", [gpt, modern], ids=["gpt", "modern"])
def test_only_weights_of_linear_layers_have_weight_decay(rung, small):
    """With gradients of zero, whatever the optimizer, an update is the decay: a factor of 1 - 0.5 * 0.2."""
    config = small(rung, weight_decay=0.2)
    model = rung.LanguageModel(65, config)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    apply_update(make_optimizers(model, config), 0.5, CPU, "fp32")
    assert len(linear) == {gpt: 4, modern: 5}[rung] * config.n_layer + 1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.9 if name in linear else 1), msg=name)


def test_micro_batches_give_the_same_weights_as_the_whole_batch(corpus, small, monkeypatch):
    config = small(gpt, steps=5, batch_size=7)
    whole, _ = trained(gpt, corpus, config)
    seen = watch(monkeypatch, lambda training, idx, _: training and len(idx))
    monkeypatch.setattr("training.device.CPU_TOKENS_AT_ONCE", 3 * config.block_size)
    parts, _ = trained(gpt, corpus, config)
    assert seen == {False, 3, 1}  # 7 sequences as 3, 3 and 1, weighted by their numbers
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_the_learning_rate_warms_up_and_falls():
    level = TrainConfig(steps=100, learning_rate=0.5)
    assert {learning_rate(step, level) for step in range(100)} == {0.5}
    shaped = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=9, schedule="linear")
    rates = [learning_rate(step, shaped) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[9:] == pytest.approx([min(1, (100 - step) / 91) for step in range(9, 100)])
    short = TrainConfig(steps=50, learning_rate=1.0, warmup_steps=100, schedule="linear")  # warms up for 5 steps
    assert learning_rate(5, short) == 1.0 and learning_rate(49, short) == pytest.approx(1 / 45)


class Failing(gpt.LanguageModel):
    """Its logits are nan in training from the seventh step on."""

    calls = 0

    def forward(self, idx):
        self.calls += self.training
        return super().forward(idx) * (float("nan") if self.training and self.calls > 6 else 1)


def test_a_loss_that_is_not_finite_stops_a_run_before_the_update(corpus, small):
    config = small(gpt, steps=12, eval_interval=4)
    torch.manual_seed(config.seed)
    model = Failing(corpus.tokenizer.vocab_size, config)
    state = State.at_start(model, config)
    with pytest.raises(UserError, match=r"at step 7; .*--learning-rate"):
        list(train(state, corpus, config, "fp32", range(12)))
    assert [evaluation.step for evaluation in state.evaluations] == [0, 4]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_run_that_diverges_prints_a_warning_and_is_logged(tmp_path, text_file, capsys):
    diverging = ["--learning-rate", "300", "--steps", "5"]
    run(feed_forward.LanguageModel, feed_forward.Config, [*flags(tmp_path, text_file), *diverging])
    assert "WARNING: the run has diverged" in capsys.readouterr().err
    losses = read_log(tmp_path / "log.csv")["val_loss"]
    assert losses.iloc[-1] > 10 * losses.iloc[0]


class Fixed(nn.Module):
    """A model that always predicts the same probabilities."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, 0.3, 0.2]).log())

    def forward(self, idx):
        return self.logits.expand(*idx.shape, -1)


def frequencies(length=2000, **settings):
    start = torch.zeros(1, dtype=torch.long)
    ids = generate(Fixed(), start, length, 8, generator=torch.Generator().manual_seed(0), **settings)
    assert ids.shape == (length + 1,)
    return (torch.bincount(ids[1:], minlength=3) / length).tolist()


def test_generated_text_follows_the_probabilities():
    assert frequencies() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert frequencies(temperature=0.5) == pytest.approx([0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38], abs=0.03)
    assert frequencies(top_k=2) == pytest.approx([0.625, 0.375, 0], abs=0.03)
    assert frequencies(temperature=0) == frequencies(top_k=1) == [1, 0, 0]


def test_the_config_hash_depends_on_settings_that_affect_the_result_alone(tmp_path):
    config = gpt.Config()
    free = {"seed": 9, "eval_interval": 7, "device": "cpu", "loss_csv": tmp_path, "prompt": "x", "precision": "fp32"}
    assert config_hash(replace(config, **free)) == config_hash(config)
    changes = ({"steps": 9}, {"n_head": 2}, {"learning_rate": 0.5}, {"schedule": "constant"}, {"holdout": True})
    assert len({config_hash(replace(config, **change)) for change in (*changes, {})}) == len(changes) + 1


def test_devices_are_chosen_and_missing_ones_are_an_error(monkeypatch):
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda"
    for name in ("cuda:1", "cuda:x", "tpu"):
        with pytest.raises(UserError, match="use --device"):
            choose_device(name)


@pytest.mark.parametrize(("feature", "native"), [("avx512_f", "no"), ("amx_bf16", "amx"), ("bf16", "arm")])
def test_large_models_use_native_bf16(feature, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "cpu_name": "Some  CPU"})
    assert choose_precision("auto", CPU, 10_000_000) == ("fp32" if native == "no" else "bf16")
    assert choose_precision("auto", CPU, 40_000) == "fp32"
    assert choose_precision("bf16", CPU, 40_000) == "bf16" and choose_precision("fp32", CPU, 10**7) == "fp32"
    assert processor(CPU) == f"Some CPU, bf16: {native}"
