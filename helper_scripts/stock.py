"""Rungs as architectures that the transformers library has: their settings, and the weights by its names.

With these the logits are the same as the rung's. transformers itself is not imported: its names stand here, and
tests/test_export.py compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data import UserError
from helper_scripts.models import Trained
from training import TrainConfig


@dataclass(frozen=True)
class Stock:
    """A model of a stock architecture.

    name: of the architecture. config: what config.json holds. weights: fp32, by the names that transformers gives them.
    past_context: a sentence on texts that are longer than the context.
    """

    name: str
    config: dict
    weights: dict[str, Tensor]
    past_context: str


@dataclass(frozen=True)
class Architecture:
    """names: ours -> theirs, of modules with weights; N is a block's number, and ? stands for q, k and v in turn.

    settings: a rung's Config -> what config.json says besides what all have in common. zero_bias: whether queries, keys
    and values have a bias, which is zero here. transposed: whether weights of a block's linear layers are stored as
    (in, out).
    """

    name: str
    class_name: str
    names: Mapping[str, str]
    settings: Callable[[TrainConfig], dict]
    past_context: str
    zero_bias: bool = False
    transposed: bool = False


def architecture_of(rung: str) -> Architecture:
    """Raises UserError for a rung that has none, with the part that is missing."""
    if rung not in ARCHITECTURES:
        part = NO_STOCK.get(rung, "helper_scripts/stock.py names none for it")
        raise UserError(
            f"{rung} has no stock architecture: {part}; rungs that can be exported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[rung]


def stock_model(trained: Trained) -> Stock:
    """Raises UserError for a rung without an architecture, and for a weight that its architecture has no place for."""
    rung, config = trained.metadata["rung"], trained.config
    architecture = architecture_of(rung)
    settings = architecture.settings(config) | {
        "architectures": [architecture.class_name],
        "vocab_size": trained.tokenizer.vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": None,  # some architectures' own are beyond this vocabulary
        "eos_token_id": None,
        "dtype": "float32",
    }
    weights = without_output_bias(trained.model.state_dict(), config.n_layer)
    if architecture.zero_bias:
        for name in [name for name in weights if name.endswith("qkv.weight")]:
            weights[name.replace("weight", "bias")] = torch.zeros(len(weights[name]))
    renamed = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        number = "".join(re.findall(r"blocks\.(\d+)", module))
        theirs = architecture.names.get(re.sub(r"blocks\.\d+", "blocks.N", module))
        if theirs is None:
            raise UserError(f"{rung} has a weight {name}, for which {architecture.name} has no place")
        if architecture.transposed and tensor.dim() == 2 and number:
            tensor = tensor.T
        parts = tensor.chunk(3) if "?" in theirs else [tensor]
        for part, letter in zip(parts, "qkv", strict=False):
            renamed[f"{theirs.replace('N', number).replace('?', letter)}.{kind}"] = part.clone(
                memory_format=torch.contiguous_format
            )
    return Stock(architecture.name, settings, renamed, architecture.past_context)


def without_output_bias(weights: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Remove `lm_head.bias` without changing the logits: stock architectures have none.

    A vector n that LayerNorm has normalised, before its gain g and shift s, sums to zero over its C channels. So a
    constant may be added to a row w of the output layer: (w + c) . n = w . n. With a gain of one and a shift of one,
    the logit is (w + c) . (n + 1) = w . n plus the sum of the row, and c makes that sum what g, s and the bias add.
    """
    if "lm_head.bias" not in weights:
        return weights
    norm = "final_norm" if "final_norm.weight" in weights else f"blocks.{n_layer - 1}.norm2"  # the last one
    rest = {name: tensor for name, tensor in weights.items() if name != "lm_head.bias"}
    output, bias = weights["lm_head.weight"].double(), weights["lm_head.bias"].double()  # (V, C), (V,)
    gain, shift = weights[f"{norm}.weight"].double(), weights[f"{norm}.bias"].double()  # (C,) each
    rows = output * gain
    rows += ((output @ shift + bias - rows.sum(dim=1)) / len(gain))[:, None]
    ones = torch.ones(len(gain))
    return rest | {"lm_head.weight": rows.float(), f"{norm}.weight": ones, f"{norm}.bias": ones.clone()}


def gpt_settings(config: TrainConfig) -> dict:
    """What GPT and GPT-2 have in common. Both have 4C channels in the feed-forward by themselves, as rungs 6 to 8."""
    dropout = getattr(config, "dropout", 0.0)  # for users who train it further
    return {
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "layer_norm_epsilon": 1e-5,  # torch's own
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "attn_pdrop": 0.0,
    }


def rotary_settings(config: TrainConfig) -> dict:
    """What the architectures with rotary positions have in common."""
    return {
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": config.n_embd // config.n_head,
        "max_position_embeddings": config.block_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rope_theta": 10_000.0,  # the same, for older versions of transformers
        "rope_scaling": None,
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # what nn.RMSNorm takes by itself
        "hidden_act": "relu",
    }


def gpt1(config: TrainConfig) -> dict:
    return gpt_settings(config) | {"model_type": "openai-gpt", "afn": "relu"}


def gpt2(config: TrainConfig) -> dict:
    return gpt_settings(config) | {"model_type": "gpt2", "activation_function": "relu"}


def starcoder2(config: TrainConfig) -> dict:
    return rotary_settings(config) | {
        "model_type": "starcoder2",
        "norm_epsilon": 1e-5,  # torch's own
        "embedding_dropout": config.dropout,
        "residual_dropout": config.dropout,
        "sliding_window": config.block_size,  # as the rung's cache: each position attends to the last so many
    }


def arcee(config: TrainConfig) -> dict:
    return rotary_settings(config) | {"model_type": "arcee"}


def apertus(config: TrainConfig) -> dict:
    return rotary_settings(config) | {"model_type": "apertus", "pad_token_id": None}


def qwen3(config: TrainConfig) -> dict:
    return rotary_settings(config) | {
        "model_type": "qwen3",
        "intermediate_size": 8 * config.n_embd // 3,
        "hidden_act": "silu",
        "use_sliding_window": True,  # as the rung's cache: each position attends to the last so many
        "sliding_window": config.block_size,
        "max_window_layers": 0,  # every block
        "layer_types": ["sliding_attention"] * config.n_layer,
    }


GPT2_NAMES = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks.N.norm1": "transformer.h.N.ln_1",
    "blocks.N.attention.qkv": "transformer.h.N.attn.c_attn",
    "blocks.N.attention.proj": "transformer.h.N.attn.c_proj",
    "blocks.N.norm2": "transformer.h.N.ln_2",
    "blocks.N.feed_forward.net.0": "transformer.h.N.mlp.c_fc",
    "blocks.N.feed_forward.net.2": "transformer.h.N.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
GPT1_NAMES = GPT2_NAMES | {
    "token_embedding": "transformer.tokens_embed",
    "position_embedding": "transformer.positions_embed",
}
ROTARY_NAMES = {
    "token_embedding": "model.embed_tokens",
    "blocks.N.norm1": "model.layers.N.input_layernorm",
    "blocks.N.attention.qkv": "model.layers.N.self_attn.?_proj",
    "blocks.N.attention.proj": "model.layers.N.self_attn.o_proj",
    "blocks.N.norm2": "model.layers.N.post_attention_layernorm",
    "blocks.N.feed_forward.net.0": "model.layers.N.mlp.up_proj",
    "blocks.N.feed_forward.net.2": "model.layers.N.mlp.down_proj",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
}
STARCODER2_NAMES = ROTARY_NAMES | {
    "blocks.N.feed_forward.net.0": "model.layers.N.mlp.c_fc",
    "blocks.N.feed_forward.net.2": "model.layers.N.mlp.c_proj",
}
QK_NORM_NAMES = {
    "blocks.N.attention.q_norm": "model.layers.N.self_attn.q_norm",
    "blocks.N.attention.k_norm": "model.layers.N.self_attn.k_norm",
}
APERTUS_NAMES = (
    ROTARY_NAMES
    | QK_NORM_NAMES
    | {
        "blocks.N.norm1": "model.layers.N.attention_layernorm",
        "blocks.N.norm2": "model.layers.N.feedforward_layernorm",
    }
)
QWEN3_NAMES = (
    ROTARY_NAMES
    | QK_NORM_NAMES
    | {
        "blocks.N.feed_forward.gate": "model.layers.N.mlp.gate_proj",
        "blocks.N.feed_forward.up": "model.layers.N.mlp.up_proj",
        "blocks.N.feed_forward.down": "model.layers.N.mlp.down_proj",
    }
)

STOPS = "There are no positions beyond it: a longer text is an error."
FORGETS = "A longer text goes on: every character attends to that many before it, and forgets what is further back."
DRIFTS = "A longer text attends further back than the model was trained to."

GPT2 = Architecture("GPT-2", "GPT2LMHeadModel", GPT2_NAMES, gpt2, STOPS, zero_bias=True, transposed=True)
QWEN3 = Architecture("Qwen3", "Qwen3ForCausalLM", QWEN3_NAMES, qwen3, FORGETS)
ARCHITECTURES = {
    "post_norm": Architecture(
        "OpenAI GPT", "OpenAIGPTLMHeadModel", GPT1_NAMES, gpt1, STOPS, zero_bias=True, transposed=True
    ),
    "pre_norm": GPT2,
    "gpt": GPT2,
    "rotary": Architecture(
        "StarCoder2", "Starcoder2ForCausalLM", STARCODER2_NAMES, starcoder2, FORGETS, zero_bias=True
    ),
    "rms_norm": Architecture("Arcee", "ArceeForCausalLM", ROTARY_NAMES, arcee, DRIFTS),
    "qk_norm": Architecture("Apertus", "ApertusForCausalLM", APERTUS_NAMES, apertus, DRIFTS),
    "swiglu": QWEN3,
    "muon": QWEN3,
    "previous_token": GPT2,
}

SHORT_CONV = "none has its short convolutions (ShortConv)"
NO_STOCK = {
    "bigram": "none is a table alone",
    "self_attention": "none is without skip connections",
    "multi_head": "none is without skip connections",
    "feed_forward": "none is without skip connections",
    "residual": "none is without norms",
    "value_residual": "none mixes the first block's values into every block's (value_lambdas)",
    "modern": SHORT_CONV,
    "averaging": SHORT_CONV,
    "distillation": SHORT_CONV,
    "ablation": "it keeps short convolutions, value_lambdas or both, and none has either",
}
