"""Which device a run uses, how precisely it multiplies there, and how much at a time.

Apple's MPS has its own rules. None of them fails loudly when it is broken, so they are all listed here, with the reason
(numbers are of issues of pytorch/pytorch) and the place that keeps them; `tests/test_mps_rules.py` holds them.

1. fp32 unless bf16 is asked for, and never fp16 with a scaled gradient: that has trained to nan (142397, 184286).
   `choose_precision`
2. Attention is written out, with a mask: torch's own, in half precision with is_causal under no_grad, let positions see
   the future (195910), and in fp32 read out of bounds in earlier versions (152344, 174861). Every rung.
3. No `torch.compile`: unfinished there (150121), a compiled LayerNorm was silently wrong (191976). `worth_compiling`
4. No non_blocking copies to it: they have delivered stale data (139550, 189690). `Corpus.batch`
5. Samples are drawn on the CPU: multinomial has returned ids out of range and of probability zero (92752, 136623,
   192577). `stream`
6. No float64, which it does not have (122602): losses are summed on the CPU. `exact_loss`
7. Shapes stay fixed, in sampling too: memory grows with every new one (132596, 164299). `consecutive_windows`,
   `shapes_may_grow`
8. It has a random state of its own: batches and starting weights are drawn on the CPU, so that they are the same
   everywhere. Dropout is not, and equal seeds do not give equal bits on MPS and CPU. `Corpus.batch`, `run`
"""

from __future__ import annotations

import contextlib
import time
from importlib.util import find_spec

import torch

from data import UserError
from training import ranks

TINY = 1_000_000  # parameters; below it a step is bound by the overhead of calls, which lower precision only adds to

CPU_TOKENS_AT_ONCE = 2048  # of a training step; fewer brought no more speed

COMPILE_PAYS_AFTER = 180  # seconds of a run on CUDA; the compiler takes a minute or so, and saves a part of each step


def choose_device(name: str) -> torch.device:
    """The device of `--device`; "auto" is the first there is of cuda, mps, cpu. Raises UserError.

    Under torchrun each process gets a GPU of its own.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if ranks.launched():
        there["mps"] = False  # torch has no way for processes to exchange what lies there
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    if ranks.launched() and name == "cuda":
        name = f"cuda:{ranks.local_rank()}"  # a GPU for each process
    kind, colon, index = name.partition(":")
    if ranks.launched() and kind == "cuda" and there["cuda"] and ranks.local_rank() >= torch.cuda.device_count():
        raise UserError(f"there are {torch.cuda.device_count()} GPUs here, and each process needs its own; start fewer")
    choices = " or ".join(f"--device {kind}" for kind, is_there in there.items() if is_there)
    if kind not in there:
        raise UserError(f"--device {name} is not known; use {choices}, or leave it out")
    if not there[kind]:
        raise UserError(f"--device {name} is not there on this machine; use {choices}, or leave it out")
    if colon and not (index.isdecimal() and int(index) < (torch.cuda.device_count() if kind == "cuda" else 1)):
        raise UserError(f"--device {name}: there is no {kind} device of that number; use --device {kind}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device, n_parameters: int) -> str:
    """ "fp32" or "bf16" for `--precision`; "auto" takes the one that is faster on this device for this size."""
    if name != "auto":
        return name
    if n_parameters < TINY or device.type == "mps":  # on MPS half precision has leaked future tokens without a word
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Processors without bf16 units emulate them, several times slower than fp32: only a measurement tells.
    return min(("fp32", "bf16"), key=_seconds_of_a_product)


def autocast(device: torch.device, precision: str):
    """The context in which a model's forward pass runs in `precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def sequences_at_once(device: torch.device, block_size: int) -> int:
    """How many sequences of a batch to run forward and backward in one go; the gradients of a batch's parts add up.

    On a CPU few, so that memory does not grow with the batch. A GPU wants them all.
    """
    return max(1, CPU_TOKENS_AT_ONCE // block_size) if device.type == "cpu" else 2**31


def worth_compiling(device: torch.device, seconds: float) -> bool:
    """Whether `torch.compile` wins back its own start-up in a run that would take so many seconds without.

    On a CPU the compiled step was no faster than the plain one; on MPS it has given wrong results without a word.
    Compiling for CUDA takes Triton, which torch does not bring on every system.
    """
    return device.type == "cuda" and seconds > COMPILE_PAYS_AFTER and find_spec("triton") is not None


def shapes_may_grow(device: torch.device) -> bool:
    """Whether a model may sample with a cache, whose shapes are new with each character. MPS keeps memory for each."""
    return device.type != "mps"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked to: without it a clock stops too early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _seconds_of_a_product(precision: str) -> float:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(6):  # the first is slower, and the fastest is the least disturbed
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return min(times)


def describe(device: torch.device) -> str:
    """What a person would call it: "cpu (2 threads)", "cuda (NVIDIA H200)"."""
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
