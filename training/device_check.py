"""Compare a device with the CPU before a run uses it: backends have given wrong results without an error."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import Corpus, UserError
from training.config import TrainConfig
from training.update import autocast

SEQUENCES = 2  # enough to tell them apart, few enough for a second's work
NOISE = 0.1  # added to gains and biases

# The allowed difference between the device and the CPU in fp32, as a share of the largest logit or of a gradient's
# length. Other orders of summation give about 1e-6 to 1e-5, a wrong operator ten percent and more.
TOLERANCE = 1e-3
# Of the largest logit, by which one may change with a later character. With equal shapes the operations are the same,
# so any change is an error; the smallest number that a wrong mask could make is far above this.
LEAK = 1e-5
SMALL = 1e-3  # the share of all gradients' length below which one is measured by theirs rather than its own


def check_device(model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str) -> None:
    """Raises UserError, with the figures, if the device of `model` and `corpus` computes something else than the CPU.

    In fp32 it compares logits and gradients of a small batch with the CPU's. In the run's own precision it checks that
    no logit changes with a later character. `model` and the random generators are not changed.
    """
    device = corpus.train.device
    idx, targets = corpus.batch(config.seed, 0, SEQUENCES, config.block_size)
    generator = torch.Generator().manual_seed(config.seed)
    on_cpu = copy.deepcopy(model).cpu().eval()
    for parameter in on_cpu.parameters():
        # numbers around one reach every operator, as in a trained model: small initial values would hide errors
        spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else NOISE
        parameter.data.add_(spread * torch.randn(parameter.shape, generator=generator))
    there = copy.deepcopy(model).eval()
    there.load_state_dict(on_cpu.state_dict())

    right, right_gradients = _logits_and_gradients(on_cpu, idx.cpu(), targets.cpu())
    logits, gradients = _logits_and_gradients(there, idx, targets)
    _compare("logits", (logits - right).abs().max() / right.abs().max(), TOLERANCE, device, config)
    total = torch.stack([gradient.norm() for gradient in right_gradients.values()]).norm()
    gaps = {  # relative to its own length, or to all gradients' if it is tiny: a key bias has gradient zero, plus noise
        name: (gradients[name] - gradient).norm() / gradient.norm().clamp(min=SMALL * total)
        for name, gradient in right_gradients.items()
    }
    worst = max(gaps, key=lambda name: gaps[name].nan_to_num(float("inf")))
    _compare(f"gradients of {worst}", gaps[worst], TOLERANCE, device, config)

    changed = idx.clone()
    half = config.block_size // 2
    changed[:, half:] = (changed[:, half:] + 1) % corpus.tokenizer.vocab_size
    with torch.no_grad(), autocast(device, precision):
        before, after = there(idx)[:, :half].float().cpu(), there(changed)[:, :half].float().cpu()
    if half:
        leak = (before - after).abs().max() / before.abs().max()
        _compare(f"{precision} logits, as later characters change,", leak, LEAK, device, config)


def _logits_and_gradients(model: nn.Module, idx: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Both are returned on the CPU."""
    logits = model(idx)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: each.grad.cpu() for name, each in model.named_parameters() if each.grad is not None}
    return logits.detach().cpu(), gradients


def _compare(what: str, gap: Tensor, allowed: float, device: torch.device, config: TrainConfig) -> None:
    if gap <= allowed:  # false for nan
        return
    other = "--precision fp32" if what.startswith("bf16") else "--device cpu"
    raise UserError(
        f"{device} fails its check: {what} differ by {gap.item():.1e} of their size; at most {allowed:.0e} is "
        f"allowed; try {other}, or --skip-device-check to train anyway"
    )
