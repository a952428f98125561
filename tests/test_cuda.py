"""Tests that need CUDA; on other machines they are skipped."""

import pytest
import torch

import gpt
from training.device import choose_precision
from training.loop import train
from training.state import Evaluation, State

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture
def on_cuda(corpus):
    return corpus.to(torch.device("cuda"))


def test_training_does_not_synchronize_between_evaluations(on_cuda, small, monkeypatch):
    monkeypatch.setattr("training.loop.evaluate", lambda *args, **kwargs: Evaluation(0, 0.0, 0.0, 0.0))
    monkeypatch.setattr("training.loop.synchronize", lambda device: None)
    checked = []  # steps whose loss was read; reading it makes the CPU wait
    monkeypatch.setattr("training.loop.check_finite", lambda loss, step: checked.append(step))
    config = small(gpt, steps=5, eval_interval=100, dropout=0.2, batch_size=64, block_size=256)
    model = gpt.LanguageModel(on_cuda.tokenizer.vocab_size, config).cuda()
    run = train(State.at_start(model, config), on_cuda, config, "bf16", range(5))
    next(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert checked == [4]


def test_cuda_trains_like_the_cpu_and_large_models_use_bf16(corpus, on_cuda, small):
    def losses(corpus, device, compiled=False):
        config = small(gpt, steps=20, eval_interval=20, learning_rate=1e-2)
        torch.manual_seed(0)
        model = gpt.LanguageModel(corpus.tokenizer.vocab_size, config).to(device)
        *_, last = train(State.at_start(model, config, compiled=compiled), corpus, config, "fp32", range(20))
        return last.train_loss, last.val_loss

    assert losses(on_cuda, "cuda", compiled=True) == pytest.approx(losses(on_cuda, "cuda"), abs=2e-3)
    assert losses(on_cuda, "cuda") == pytest.approx(losses(corpus, "cpu"), abs=2e-3)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert choose_precision("auto", torch.device("cuda"), 10**7) == ("bf16" if native else "fp32")
