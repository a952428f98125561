"""The rules for MPS that `training/device.py` lists, as far as they show on another device."""

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


class Watching(TorchDispatchMode):
    """Remembers every operator that runs, and every type that one returns."""

    def __init__(self):
        super().__init__()
        self.operators, self.types, self.copies = set(), set(), set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators.add(operator.overloadpacket.__name__)
        self.types |= {tensor.dtype for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)}
        self.copies |= {operator} if kwargs and kwargs.get("non_blocking") else set()
        return result


def test_fp32_unless_asked_never_compiled_and_no_cache():
    assert choose_precision("auto", MPS, 10**8) == "fp32" and choose_precision("bf16", MPS, 10**8) == "bf16"
    assert not compile_pays(MPS, 10**9) and not compile_pays(torch.device("cpu"), 10**6)
    assert not shapes_may_grow(MPS) and shapes_may_grow(torch.device("cpu"))


@pytest.mark.parametrize("rung", [gpt, modern], ids=rung_id)
def test_attention_is_written_out_and_nothing_is_float64(rung, small):
    model = rung.LanguageModel(65, small(rung))
    with Watching() as watched:
        model(torch.zeros(2, 8, dtype=torch.long)).sum().backward()
    assert not any("attention" in name for name in watched.operators)
    assert torch.float64 not in watched.types


def test_text_is_drawn_on_the_cpu_and_its_model_sees_one_shape(monkeypatch, small):
    drawn_on, shapes, draw = set(), set(), torch.multinomial

    class Elsewhere(nn.Module):
        """A model on a device without values, whose answers come from the CPU."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, idx):
            assert idx.device.type == "meta"
            shapes.add(tuple(idx.shape))
            return torch.zeros(*idx.shape, 3)

    def watched(probabilities, *args, **kwargs):
        drawn_on.add(probabilities.device.type)
        return draw(probabilities, *args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", watched)
    generate(Elsewhere(), torch.zeros(2, dtype=torch.long), 20, 8)
    assert drawn_on == {"cpu"}
    model = gpt.LanguageModel(65, small(gpt)).eval()
    model.register_forward_pre_hook(lambda module, inputs: shapes.add(tuple(inputs[0].shape)))
    monkeypatch.setattr(generation, "shapes_may_grow", lambda device: False)  # as there
    generate(model, torch.zeros(2, dtype=torch.long), 20, 8)
    assert shapes == {(1, 8)}


def test_an_evaluation_sees_full_windows_in_few_shapes(corpus):
    shapes = set()

    class Uniform(nn.Module):
        def forward(self, idx):
            shapes.add(tuple(idx.shape))
            return torch.zeros(*idx.shape, corpus.tokenizer.vocab_size)

    assert abs(exact_loss(Uniform(), corpus.val, 8) - math.log(corpus.tokenizer.vocab_size)) < 1e-6
    assert {shape[1] for shape in shapes} == {8} and len(shapes) <= 2  # full ones, and maybe a rest


def test_batches_are_drawn_on_the_cpu_and_no_copy_is_non_blocking(corpus):
    with Watching() as watched:
        idx, _ = corpus.to(torch.device("meta")).batch(0, 0, 4, 8)
    assert idx.device.type == "meta"
    assert "_to_copy" in watched.operators and not watched.copies
