"""Measure a training step of each rung, where its time goes, and how near it comes to the machine's own speed.

"share" compares the arithmetic of a step with a large matrix product, measured in the same run and precision: the
part of the time in which the machine does what it is best at. The rest is the overhead of calls and memory traffic.
With rung 8 among the rungs, its step is then held against the plain reference's (`reference.py`), both on the lecture's
batches of 64 x 256, in turn, and its sampling with a cache against the same without. The encoder is timed on Python's
own documentation, repeated.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import gpt
from data import CharTokenizer, Corpus, UserError, load_corpus
from helper_scripts.models import rung_module, rungs_of
from helper_scripts.reference import Reference
from helper_scripts.results import check_rungs
from training.cli import errors_in_one_line, parse
from training.device import autocast, choose_device, choose_precision, describe, synchronize
from training.evaluate import exact_loss
from training.loop import train
from training.sampling import sample
from training.state import State


@dataclass(frozen=True)
class Options:
    rungs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # rungs, by name; none is the first eight
    seconds: float = 3.0  # to spend on each rung's steps, about
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the products; auto takes the faster one
    corpus: str = "auto"  # as for a rung: a text file, auto or pydoc
    rounds: int = 3  # of steps of the plain reference and rung 8 in turn; 0 leaves the comparison out
    text_mb: int = 64  # size of the text to encode, in millions of characters


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        options = replace(options, rungs=options.rungs or (*rungs_of("own"), "gpt"))
        check_rungs(options.rungs)
        if not 0 < options.seconds < float("inf") or options.text_mb < 1 or options.rounds < 0:
            raise UserError("--seconds has to be more than 0, --text-mb at least 1 and --rounds 0 or more")
        device = choose_device(options.device)
        corpus = load_corpus(options.corpus).to(device)
        rates = {precision: _product_rate(device, precision) for precision in ("fp32", "bf16")}
        print(f"{describe(device)}, torch {torch.__version__}")
        print("large product: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items()))
        rows = [_measure(rung, corpus, device, options, rates) for rung in options.rungs]
        print(f"\n{pd.DataFrame(rows).to_string(index=False)}\n")
        if "gpt" in options.rungs and options.rounds:
            print(f"{_against_the_reference(corpus, device, options, rates)}\n")
            print(f"{_sampling(corpus, device, gpt.Config())}\n")
        print(_encoder(options.text_mb))


def _measure(rung: str, corpus: Corpus, device: torch.device, options: Options, rates: dict[str, float]) -> dict:
    """A row of the table: a rung's own loop, timed as a whole and then part by part."""
    module = rung_module(rung)
    config = module.Config(eval_interval=10**9)
    corpus.check_context(config.block_size)
    torch.manual_seed(config.seed)
    model = module.LanguageModel(corpus.tokenizer.vocab_size, config).to(device).train()
    precision = choose_precision(options.precision, device, sum(p.numel() for p in model.parameters()))
    tokens = config.batch_size * config.block_size

    idx, targets = corpus.batch(0, 0, config.batch_size, config.block_size)

    def forward():
        with autocast(device, precision):
            return F.cross_entropy(model(idx).float().flatten(0, 1), targets.flatten())

    optimizers = State.at_start(model, config).optimizers
    with FlopCounterMode(display=False) as counter:
        forward().backward()
        for optimizer in optimizers:  # which has products where Muon makes the update
            optimizer.step()
    parts = {
        "batch": lambda: corpus.batch(0, 1, config.batch_size, config.block_size),
        "forward": forward,
        "fw+bw": lambda: forward().backward(),
        "update": lambda: [optimizer.step() for optimizer in optimizers],
    }
    ms = {name: 1e3 * _seconds(part, device, options.seconds / 8) for name, part in parts.items()}

    # the loop itself, on a corpus with next to nothing to evaluate
    short = replace(corpus, val=corpus.val[: config.block_size + 1])
    steps = max(2, round(options.seconds / 2 / (1e-3 * (ms["batch"] + ms["fw+bw"] + ms["update"]))))
    *_, last = train(
        State.at_start(model, config), short, replace(config, steps=steps, decay=False), precision, range(steps)
    )
    step = last.seconds / steps

    some = corpus.val[:16_385]
    evaluation = _seconds(lambda: exact_loss(model, some, config.block_size), device, options.seconds / 8)
    return {
        "rung": rung,
        "precision": precision,
        "ms/step": f"{1e3 * step:.2f}",
        "batch": f"{ms['batch']:.2f}",
        "forward": f"{ms['forward']:.2f}",
        "backward": f"{ms['fw+bw'] - ms['forward']:.2f}",
        "update": f"{ms['update']:.2f}",
        "characters/s": f"{tokens / step:,.0f}",
        "GFLOP/s": f"{counter.get_total_flops() / step / 1e9:.1f}",
        "share": f"{counter.get_total_flops() / step / rates[precision]:.1%}",
        "s/evaluation": f"{2 * evaluation * len(corpus.val) / len(some):.2f}",
        "s/run": f"{module.Config().steps * step:,.0f}",
    }


def _against_the_reference(corpus: Corpus, device: torch.device, options: Options, rates: dict[str, float]) -> str:
    """Steps of the plain reference, in fp32, and of rung 8, in its own precision, one after the other, in turn."""
    config = gpt.Config(**gpt.Config.RECIPES["lecture"])
    corpus.check_context(config.block_size)
    vocab_size = corpus.tokenizer.vocab_size
    sizes = {name: getattr(config, name) for name in ("n_embd", "n_head", "n_layer", "block_size", "dropout")}
    models = {
        "reference": Reference(vocab_size, **sizes).to(device),
        "gpt": gpt.LanguageModel(vocab_size, config).to(device).train(),
    }
    optimizer = torch.optim.AdamW(models["reference"].parameters(), lr=config.learning_rate)
    precision = choose_precision(options.precision, device, sum(p.numel() for p in models["gpt"].parameters()))
    short = replace(corpus, val=corpus.val[: config.block_size + 1])

    def plain() -> float:
        synchronize(device)
        started = time.perf_counter()
        idx, targets = corpus.batch(0, 0, config.batch_size, config.block_size)
        _, loss = models["reference"](idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronize(device)
        return time.perf_counter() - started

    def ours() -> float:
        two_steps = replace(config, steps=2, eval_interval=1)
        _, one, two = train(State.at_start(models["gpt"], two_steps), short, two_steps, precision, range(2))
        return two.seconds - one.seconds

    with FlopCounterMode(display=False) as counter:  # counting slows this first step, which is not timed
        plain()
    flop = counter.get_total_flops()
    ours()
    steps = pd.DataFrame([{"reference": plain(), "gpt": ours()} for _ in range(options.rounds)]).median()
    rows = [
        {
            f"{config.batch_size} x {config.block_size}": name,
            "precision": used,
            "s/step": f"{steps[name]:.4g}",
            "GFLOP/s": f"{flop / steps[name] / 1e9:,.0f}",
            "share": f"{flop / steps[name] / rates[used]:.0%}",
            "ratio": f"{steps['reference'] / steps[name]:.2f}",
        }
        for name, used in (("reference", "fp32"), ("gpt", precision))
    ]
    floor = f"all arithmetic at the rate of the faster product: {flop / max(rates.values()):.3g} s a step"
    return f"{pd.DataFrame(rows).to_string(index=False)}\n{floor}"


def _sampling(corpus: Corpus, device: torch.device, config: gpt.Config) -> str:
    """How fast rung 8 writes a text twice as long as its context, with its cache and without."""
    model = gpt.LanguageModel(corpus.tokenizer.vocab_size, config).to(device).eval()
    prompt, length = torch.zeros(1, dtype=torch.long), 2 * config.block_size

    def milliseconds(cached: bool) -> float:
        sample(model, prompt, 8, config.block_size, cached=cached)
        started = time.perf_counter()
        sample(model, prompt, length, config.block_size, cached=cached)
        return 1e3 * (time.perf_counter() - started) / length

    with_cache, without = milliseconds(True), milliseconds(False)
    return (
        f"sampling {length} characters with rung 8: {with_cache:.1f} ms each with its cache, {without:.1f} without, "
        f"{without / with_cache:.1f} times as long"
    )


def _product_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a matrix product: 2048 x 2048 x 2048, but smaller where that takes long.

    So it does on a processor that only emulates a precision, at a hundredth of its speed.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    for n in (256, 512, 1024, 2048):
        a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
        seconds = _seconds(lambda a=a, b=b: a @ b, device, 1.0 if n == 2048 else 0.0)
        if seconds > 0.2:
            break
    return 2 * n**3 / seconds


def _seconds(call: Callable, device: torch.device, budget: float) -> float:
    """Median seconds of a call, over as many as fit into `budget` seconds, three at least, after one to warm up."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return float(pd.Series(times).median())


def _encoder(millions: int) -> str:
    """Speed and memory of the tokenizer on a text of so many million characters."""
    text = load_corpus("pydoc")
    text = text.tokenizer.decode(torch.cat([text.train, text.val]))
    text = (text * (millions * 10**6 // len(text) + 1))[: millions * 10**6]
    size = len(text.encode("utf-8")) / 1e6
    cpu = torch.device("cpu")
    build = _seconds(lambda: CharTokenizer(text), cpu, 1.0)
    tokenizer = CharTokenizer(text)
    encode = _seconds(lambda: tokenizer.encode(text), cpu, 1.0)
    ids = tokenizer.encode(text)
    decode = _seconds(lambda: tokenizer.decode(ids), cpu, 1.0)
    tracemalloc.start()
    tokenizer.encode(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (
        f"tokenizer on {size:.0f} MB: vocabulary {size / build:,.0f} MB/s, encode {size / encode:,.0f} MB/s, "
        f"decode {size / decode:,.0f} MB/s; encode needs {peak / len(text):.2f} bytes a character at its peak"
    )


if __name__ == "__main__":
    main()
