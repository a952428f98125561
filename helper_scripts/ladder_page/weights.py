"""Models as the page carries them."""

from __future__ import annotations

import base64
import copy
from dataclasses import replace

import numpy as np
import torch

from helper_scripts.models import Trained
from training.cache import caches


def pack(trained: Trained, *, int8: bool) -> dict:
    """The model as plain values, for `unpack` in models.js: its weights, one after the other, in base64.

    fp32, little-endian; with int8, each row of a matrix is a scale in fp32 and then whole numbers from -127 to 127.
    """
    tensors, data = [], []
    for name, tensor in trained.model.state_dict().items():
        values = tensor.detach().float().numpy().astype("<f4")
        small = int8 and values.ndim == 2  # the rest is few
        tensors.append({"name": name, "shape": values.shape, "int8": small})
        data += quantised(values) if small else [values]
    sizes = ("block_size", "n_embd", "n_head", "n_layer")
    return {
        "rung": trained.metadata["rung"],
        "config": {name: getattr(trained.config, name) for name in sizes if hasattr(trained.config, name)},
        "cache": cache_of(trained),
        "tensors": tensors,
        "data": base64.b64encode(b"".join(part.tobytes() for part in data)).decode("ascii"),
    }


def quantised(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales (R,), a 127th of each row's largest number, and `matrix` (R, C) in these units, rounded to int8 (R, C)."""
    largest = np.abs(matrix).max(axis=1)
    scales = (np.where(largest > 0, largest, 1) / 127).astype("<f4")
    return scales, np.round(matrix / scales[:, None]).astype("i1")


def rounded(trained: Trained) -> Trained:
    """The model with its matrices as int8 has them."""
    model = copy.deepcopy(trained.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                scales, values = quantised(parameter.numpy())
                parameter.copy_(torch.from_numpy(scales[:, None] * values))
    return replace(trained, model=model)


def cache_of(trained: Trained) -> str | None:
    """The kind of cache: None, "learned" (for a position table) or "rotary"."""
    kept = caches(trained.model)
    return ("rotary" if all(cache.window is not None for cache in kept) else "learned") if kept else None
