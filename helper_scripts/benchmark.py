"""Measure a training step of each rung: where its time goes, and how close it comes to the speed of a large matmul.

"utilization" is the FLOP/s of a step divided by those of a large matmul, in the same run and precision. The rest is
overhead of calls and memory traffic. If rung 8 is measured, its step is also compared with that of a plain GPT
(reference.py), on the lecture's batches of 64 x 256, and its sampling with and without a cache. The tokenizer is timed
on the repeated corpus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import pandas as pd
import torch
import tyro
from torch import nn

import gpt
from data import CharTokenizer, Corpus, load_corpus
from helper_scripts.models import check_rungs, flop_counter, rung_module, rungs_of
from helper_scripts.reference import Reference
from training import TrainConfig
from training.cli import errors_in_one_line, parse
from training.device import choose_device, choose_precision, describe, micro_batch, processor, synchronize
from training.generation import generate
from training.hooks import loss_of
from training.loop import train
from training.run import build_model, count_parameters
from training.state import State
from training.update import apply_update, autocast, compute_gradients


@dataclass(frozen=True)
class Options:
    rungs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # rungs, by name; by default the first eight
    seconds: float = 3.0  # to spend on each rung's steps, about
    device: str = "auto"  # cpu, cuda or mps; auto takes cuda if it is there, else mps, else cpu
    corpus: str = "auto"  # as for a rung: a text file, auto or pydoc
    rounds: int = 3  # steps of the plain GPT and of rung 8, in turn; 0 skips the comparison
    text_mb: int = 64  # size of the text to encode, in millions of characters


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        rungs = options.rungs or (*rungs_of(None), "gpt")
        check_rungs(*rungs)
        device = choose_device(options.device)
        corpus = load_corpus(options.corpus).to(device)
        machine = f"{processor(device)}; {describe(device)}; torch {torch.__version__}"
        rates = {precision: _matmul_rate(device, precision) for precision in ("fp32", "bf16")}
        speeds = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {precision}" for precision, rate in rates.items())
        print(f"{machine}\nlarge matmul: {speeds}\n")
        rows = [_measure(rung, corpus, device, options, rates) for rung in rungs]
        print(f"{pd.DataFrame(rows).to_string(index=False)}\n")
        if "gpt" in rungs and options.rounds:
            print(f"{_against_the_reference(corpus, device, options.rounds)}\n")
            print(f"{_sampling(corpus, device, gpt.Config())}\n")
        print(_tokenizer(corpus, options.text_mb))


def _measure(rung: str, corpus: Corpus, device: torch.device, options: Options, rates: dict[str, float]) -> dict:
    """A row of the table: a rung's own loop, timed as a whole and then part by part."""
    module = rung_module(rung)
    config = module.Config()
    model, precision = _model(module.LanguageModel, corpus, config, device)
    state, tokens = State.at_start(model, config), config.batch_size * config.block_size

    def batch():
        return corpus.batch(0, 0, config.batch_size, config.block_size, config.sampling)

    idx, targets = batch()
    at_a_time = micro_batch(device, config.block_size)

    def forward():
        with autocast(device, precision):
            return [model(part) for part in idx.split(at_a_time)]

    def gradients():
        compute_gradients(model, idx, targets, precision, at_a_time, loss_of(model))

    def update():
        apply_update(state.optimizers, 1e-8, device, precision)

    with flop_counter() as counter:
        gradients()
        update()
    parts = {part.__name__: _seconds(part, device, options.seconds / 8) for part in (batch, forward, gradients, update)}
    parts["backward"] = parts.pop("gradients") - parts["forward"]
    steps = max(2, round(options.seconds / 2 / sum(parts.values())))
    trial = replace(config, steps=steps, eval_interval=steps, learning_rate=1e-8)
    *_, last = train(State.at_start(model, trial), _short(corpus, config), trial, precision, range(steps))
    step, speed = last.seconds / steps, counter.get_total_flops() * steps / last.seconds
    return {
        "rung": rung,
        "precision": precision,
        "ms/step": f"{1e3 * step:.2f}",
        **{name: f"{1e3 * parts[name]:.2f}" for name in ("batch", "forward", "backward", "update")},
        "characters/s": f"{tokens / step:,.0f}",
        "GFLOP/s": f"{speed / 1e9:.1f}",
        "utilization": f"{speed / rates[precision]:.1%}",
        "s/run": f"{config.steps * step:,.0f}",
    }


def _model(language_model: type[nn.Module], corpus: Corpus, config: TrainConfig, device: torch.device):
    """A new model in training mode, and the precision that a run of it would have."""
    corpus.check_context(config.block_size)
    model = build_model(language_model, corpus, config).train()
    return model, choose_precision("auto", device, count_parameters(model))


def _short(corpus: Corpus, config: TrainConfig) -> Corpus:
    """With next to nothing to evaluate."""
    return replace(corpus, val=corpus.val[: config.block_size + 1])


def _against_the_reference(corpus: Corpus, device: torch.device, rounds: int) -> str:
    """Steps of the plain reference, in fp32, and of rung 8, in its own precision, one after the other, in turn."""
    config = gpt.Config.from_preset("lecture")
    ours, precision = _model(gpt.LanguageModel, corpus, config, device)
    sizes = {name: getattr(config, name) for name in ("n_embd", "n_head", "n_layer", "block_size", "dropout")}
    reference = Reference(corpus.tokenizer.vocab_size, **sizes).to(device)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=config.learning_rate)
    state, short = State.at_start(ours, config), _short(corpus, config)

    def our_step() -> None:
        list(train(state, short, config, precision, [state.step]))

    def plain_step() -> None:
        _, loss = reference(*corpus.batch(0, 0, config.batch_size, config.block_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    steps = {"reference": plain_step, "gpt": our_step}
    times = [{name: _timed(step, device) for name, step in steps.items()} for _ in range(rounds + 1)]
    seconds = pd.DataFrame(times[1:]).median()  # the first ones warm up
    table = pd.DataFrame({"precision": {"reference": "fp32", "gpt": precision}, "s/step": seconds.map("{:.4g}".format)})
    table["ratio"] = (seconds["reference"] / seconds).map("{:.2f}".format)
    return table.rename_axis(f"{config.batch_size} x {config.block_size}").reset_index().to_string(index=False)


def _sampling(corpus: Corpus, device: torch.device, config: gpt.Config) -> str:
    """How fast rung 8 generates a text twice as long as its context, with its cache and without."""
    model = gpt.LanguageModel(corpus.tokenizer.vocab_size, config).to(device).eval()
    prompt, length = torch.zeros(1, dtype=torch.long), 2 * config.block_size

    def milliseconds(cached: bool) -> float:
        generate(model, prompt, 8, config.block_size, cached=cached)
        return 1e3 / length * _timed(lambda: generate(model, prompt, length, config.block_size, cached=cached), device)

    with_cache, without = milliseconds(True), milliseconds(False)
    speeds = f"{with_cache:.1f} ms each with its cache, {without:.1f} without"
    return f"sampling {length} characters with rung 8: {speeds}, {without / with_cache:.1f} times as long"


def _matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matmul; smaller on a CPU, which may emulate a precision."""
    n, dtype = 1024 if device.type == "cpu" else 4096, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.ones(2, n, n, dtype=dtype, device=device)
    return 2 * n**3 / _seconds(lambda: a @ b, device, 1.0)


def _seconds(call: Callable, device: torch.device, at_least: float) -> float:
    """Median seconds of a call, over `at_least` seconds of calls, three at least, after one to warm up."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least:
        times.append(_timed(call, device))
    return float(pd.Series(times).median())


def _timed(call: Callable, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def _tokenizer(corpus: Corpus, millions: int) -> str:
    """Speed of the tokenizer on a text of so many million characters."""
    text = corpus.tokenizer.decode(corpus.val.cpu())
    text = (text * (millions * 10**6 // len(text) + 1))[: millions * 10**6]
    tokenizer, cpu = CharTokenizer(text), torch.device("cpu")
    ids = tokenizer.encode(text)
    calls = {"vocabulary": lambda: CharTokenizer(text), "encode": lambda: tokenizer.encode(text)}
    calls |= {"decode": lambda: tokenizer.decode(ids)}
    speeds = ", ".join(f"{name} {millions / _seconds(call, cpu, 1.0):,.0f}" for name, call in calls.items())
    return f"tokenizer, in millions of characters a second: {speeds}"


if __name__ == "__main__":
    main()
