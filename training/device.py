"""Which device a run uses, in which precision its matmuls are there, and how much it does at a time.

Apple's MPS has its own rules. None of them fails loudly when it is broken, so they are all listed here, with the reason
(numbers are of issues of pytorch/pytorch) and the place that keeps them; `tests/test_mps_rules.py` holds them.

1. fp32 unless bf16 is asked for, and never fp16 with a scaled gradient: that has trained to nan (142397, 184286).
   `choose_precision`
2. Attention is written out, with a mask: torch's own, in half precision with is_causal under no_grad, let positions see
   later characters (195910), and in fp32 read out of bounds in earlier versions (152344, 174861). Every rung.
3. No `torch.compile`: unfinished there (150121), a compiled LayerNorm was silently wrong (191976). `compile_pays`
4. No non_blocking copies to it: they have delivered stale data (139550, 189690). `Corpus.batch`
5. Samples are drawn on the CPU: multinomial has returned ids out of range and of probability zero (92752, 136623,
   192577). `generate`
6. No float64, which it does not have (122602): losses are summed on the CPU. `summed_loss`
7. Shapes stay fixed, in sampling too: memory grows with every new one (132596, 164299). `consecutive_windows`,
   `shapes_may_grow`
8. It has a random state of its own: batches and starting weights are drawn on the CPU, so that they are the same
   everywhere. Dropout is not, and equal seeds do not give equal bits on MPS and CPU. `Corpus.batch`, `run`
"""

from __future__ import annotations

import platform
from importlib.util import find_spec

import torch

from data import UserError
from training import ranks
from training.memory import keep_freed_memory

TINY = 1_000_000  # parameters; below it a step is bound by the overhead of calls, which autocast only adds to

CPU_TOKENS_AT_ONCE = 2048  # of a training step; fewer brought no more speed

COMPILE_PAYS_AFTER = 180  # seconds of a run on CUDA; the compiler takes about a minute, and saves a part of each step


def choose_device(name: str) -> torch.device:
    """The device of `--device`; "auto" is the first there is of cuda, mps, cpu. Raises UserError.

    Under torchrun each process gets a GPU of its own. To be called before anything is computed: from here on the CPU
    takes denormal numbers, those below 1e-38, as zero. With them it is many times slower, and threads follow only if
    they start later.
    """
    torch.set_flush_denormal(True)
    keep_freed_memory()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if ranks.launched():
        there["mps"] = False  # torch has no process group for it
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
    """ "fp32" or "bf16" for `--precision`; "auto" is bf16 for large models where the device has it natively.

    A processor without bf16 instructions emulates them, several times slower than fp32.
    """
    if name != "auto":
        return name
    if n_parameters < TINY or device.type == "mps":  # on MPS half precision has leaked later characters silently
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if native_bf16() else "fp32"


def native_bf16() -> str:
    """How this machine's processor multiplies bf16: "amx", "avx512" or "arm"; empty where it has no instructions."""
    features = torch.cpu.get_capabilities()
    names = {"amx_bf16": "amx", "avx512_bf16": "avx512", "bf16": "arm"}
    return next((name for feature, name in names.items() if features.get(feature)), "")


def processor(device: torch.device) -> str:
    """What the log names as the processor: its model, and how it multiplies bf16, if it does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = " ".join(str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine()).split())
    return f"{model}, bf16: {native_bf16() or 'no'}"


def micro_batch(device: torch.device, block_size: int) -> int:
    """How many sequences of a batch to run forward and backward at a time; the gradients of the parts add up.

    On a CPU few, so that memory does not grow with the batch. A GPU wants them all.
    """
    return max(1, CPU_TOKENS_AT_ONCE // block_size) if device.type == "cpu" else 2**31


def compile_pays(device: torch.device, seconds: float) -> bool:
    """Whether `torch.compile` wins back its own start-up in a run that would take so many seconds without.

    On a CPU the compiled step was no faster than eager; on MPS it has given wrong results silently. Compiling for CUDA
    takes Triton, which torch does not bring on every system.
    """
    return device.type == "cuda" and seconds > COMPILE_PAYS_AFTER and find_spec("triton") is not None


def shapes_may_grow(device: torch.device) -> bool:
    """Whether a model may generate with a cache, whose shapes grow with each character: MPS keeps memory for each."""
    return device.type != "mps"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked to: without it a clock stops too early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> str:
    """What the terminal is told: "cpu (2 threads)", "cuda (NVIDIA H200)"."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' * (threads > 1)})"
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
