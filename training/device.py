"""Which device a run uses, in which precision, and how many sequences at a time.

Apple's MPS has its own rules. Breaking one gives no error, only wrong results, so all are listed here, each with its
reason (the numbers are issues of pytorch/pytorch) and the code that follows it; `tests/test_mps_rules.py` tests them.

1. fp32 unless bf16 is asked for, and never fp16 with a scaled gradient: that has trained to nan (142397, 184286).
   `choose_precision`
2. Attention is written out, with a mask: torch's own, in half precision with is_causal under no_grad, let positions see
   later characters (195910), and in fp32 read out of bounds in earlier versions (152344, 174861). Every rung.
3. No `torch.compile`: unfinished there (150121), a compiled LayerNorm was silently wrong (191976). `compile_pays`
4. No non_blocking copies to it: they have delivered stale data (139550, 189690). `Corpus.batch`
5. Samples are drawn on the CPU: multinomial has returned ids out of range and of probability zero (92752, 136623,
   192577). `stream`
6. No float64, which it does not have (122602): losses are summed on the CPU. `summed_loss`
7. Shapes stay fixed, in sampling too: memory grows with every new one (132596, 164299). `consecutive_windows`,
   `shapes_may_grow`
8. It has a random state of its own: batches and starting weights are drawn on the CPU, so that they are the same
   everywhere. Dropout is not, and equal seeds do not give equal bits on MPS and CPU. `Corpus.batch`, `build_model`
"""

from __future__ import annotations

import platform
from importlib.util import find_spec

import torch

from data import UserError
from training import ranks
from training.memory import keep_freed_memory

TINY = 1_000_000  # parameters; below it, most of a step is the overhead of calls, and autocast adds to it

CPU_TOKENS_AT_ONCE = 2048  # of a training step; fewer brought no more speed

COMPILE_PAYS_AFTER = 180  # seconds of a run on CUDA; the compiler takes about a minute, and saves a part of each step


def choose_device(name: str) -> torch.device:
    """The device of `--device`; "auto" is the first there is of cuda, mps, cpu. Raises UserError.

    Under torchrun each process gets its own GPU. Call it before anything is computed: from then on the CPU treats
    denormal numbers (below 1e-38) as zero, because they make it many times slower. This holds only for threads that
    start later.
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
        raise UserError(f"--device {name} is not available on this machine; use {choices}, or leave it out")
    if colon and not (index.isdecimal() and int(index) < (torch.cuda.device_count() if kind == "cuda" else 1)):
        raise UserError(f"--device {name}: there is no {kind} device of that number; use --device {kind}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device, n_parameters: int) -> str:
    """ "fp32" or "bf16" for `--precision`; "auto" is bf16 for large models if the device has it natively.

    A processor without bf16 instructions emulates them: where measured, 1.2 to 50 times slower than fp32.
    """
    if name != "auto":
        return name
    if n_parameters < TINY or device.type == "mps":  # on MPS half precision has leaked later characters silently
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if native_bf16() else "fp32"


def native_bf16() -> str:
    """How this machine's processor multiplies bf16: "amx", "avx512" or "arm"; empty if it has no instructions."""
    features = torch.cpu.get_capabilities()
    names = {"amx_bf16": "amx", "avx512_bf16": "avx512", "bf16": "arm"}
    return next((name for feature, name in names.items() if features.get(feature)), "")


def processor(device: torch.device) -> str:
    """The processor as the log names it: its model, and how it multiplies bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = " ".join(str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine()).split())
    return f"{model}, bf16: {native_bf16() or 'no'}"


def micro_batch(device: torch.device, block_size: int) -> int:
    """How many sequences of a batch to run forward and backward at a time; the gradients of the parts add up.

    On a CPU a few, so that memory does not grow with the batch; on a GPU all.
    """
    return max(1, CPU_TOKENS_AT_ONCE // block_size) if device.type == "cpu" else 2**31


def compile_pays(device: torch.device, seconds: float) -> bool:
    """Whether `torch.compile` saves more time than it takes, in a run of so many seconds without it.

    On a CPU, compiling takes half a minute and rung 8's step was no faster; on MPS it has given wrong results silently.
    Compiling for CUDA needs Triton, which torch does not include on every system.
    """
    return device.type == "cuda" and seconds > COMPILE_PAYS_AFTER and find_spec("triton") is not None


def shapes_may_grow(device: torch.device) -> bool:
    """Whether a model may generate with a cache: its shapes grow with each character, and MPS keeps memory for each."""
    return device.type != "mps"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that a clock does not stop too early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> str:
    """The device as the terminal shows it: "cpu (2 threads)", "cuda (NVIDIA H200)"."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' * (threads > 1)})"
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
