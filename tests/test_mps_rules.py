"""The rules for MPS that `training/device.py` lists, as far as they can be tested on another device."""

import math

import pytest
import torch
from conftest import rung_id
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gpt
from stages import modern
from training import generation
from training.device import choose_precision, compile_pays, shapes_may_grow
from training.evaluate import exact_loss
from training.generation import generate

MPS = torch.device("mps")


class RecordOperators(TorchDispatchMode):
    """Records every operator that runs, and every dtype that an operator returns."""

    def __init__(self):
        super().__init__()
        self.operators, self.types, self.copies = set(), set(), set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators.add(operator.overloadpacket.__name__)
        self.types |= {tensor.dtype for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)}
        self.copies |= {operator} if kwargs and kwargs.get("non_blocking") else set()
        return result


def test_mps_uses_fp32_by_default_no_compilation_and_no_cache():
    assert choose_precision("auto", MPS, 10**8) == "fp32" and choose_precision("bf16", MPS, 10**8) == "bf16"
    assert not compile_pays(MPS, 10**9) and not compile_pays(torch.device("cpu"), 10**6)
    assert not shapes_may_grow(MPS) and shapes_may_grow(torch.device("cpu"))


@pytest.mark.parametrize("rung", [gpt, modern], ids=rung_id)
def test_a_model_uses_no_fused_attention_and_no_float64(rung, small):
    model = rung.LanguageModel(65, small(rung))
    with RecordOperators() as record:
        model(torch.zeros(2, 8, dtype=torch.long)).sum().backward()
    assert not any("attention" in name for name in record.operators)
    assert torch.float64 not in record.types


def test_sampling_draws_on_the_cpu_and_uses_one_input_shape(monkeypatch, small):
    drawn_on, shapes, draw = set(), set(), torch.multinomial

    class OnMeta(nn.Module):
        """A model on the meta device, with logits on the CPU."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, idx):
            assert idx.device.type == "meta"
            shapes.add(tuple(idx.shape))
            return torch.zeros(*idx.shape, 3)

    def record(probabilities, *args, **kwargs):
        drawn_on.add(probabilities.device.type)
        return draw(probabilities, *args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", record)
    generate(OnMeta(), torch.zeros(2, dtype=torch.long), 20, 8)
    assert drawn_on == {"cpu"}
    model = gpt.LanguageModel(65, small(gpt)).eval()
    model.register_forward_pre_hook(lambda module, inputs: shapes.add(tuple(inputs[0].shape)))
    monkeypatch.setattr(generation, "shapes_may_grow", lambda device: False)  # as on MPS
    generate(model, torch.zeros(2, dtype=torch.long), 20, 8)
    assert shapes == {(1, 8)}


def test_an_evaluation_uses_full_windows_in_at_most_two_shapes(corpus):
    shapes = set()

    class Uniform(nn.Module):
        def forward(self, idx):
            shapes.add(tuple(idx.shape))
            return torch.zeros(*idx.shape, corpus.tokenizer.vocab_size)

    assert abs(exact_loss(Uniform(), corpus.val, 8) - math.log(corpus.tokenizer.vocab_size)) < 1e-6
    assert {shape[1] for shape in shapes} == {8} and len(shapes) <= 2  # full batches, and perhaps a smaller last one


def test_batches_are_drawn_on_the_cpu_and_no_copy_is_non_blocking(corpus):
    with RecordOperators() as record:
        idx, _ = corpus.to(torch.device("meta")).batch(0, 0, 4, 8)
    assert idx.device.type == "meta"
    assert "_to_copy" in record.operators and not record.copies
