"""A rung's command: set up, plan, train, report."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data import Corpus, load_corpus
from training import console, ranks
from training.cli import errors_in_one_line, parse, unbreakable_output
from training.config import TrainConfig
from training.device import choose_device, choose_precision, compile_pays
from training.device_check import check_device
from training.generation import encode_prompt, generate
from training.hooks import prepare
from training.interrupt import Stop, stop_on_signals
from training.loop import train
from training.record import Record, check_outputs
from training.state import Evaluation, State
from training.throughput import Throughput, measure_throughput, with_dropout_for_its_epochs

OnEvaluation = Callable[[Evaluation], None]


def run(language_model: type[nn.Module], config_type: type[TrainConfig], args: Sequence[str] | None = None) -> None:
    """What `python RUNG.py` does: read the flags, train, log, save, sample."""
    with errors_in_one_line():
        module = sys.modules[language_model.__module__]
        train_rung(language_model, parse(config_type, description=inspect.getdoc(module), args=args))


def train_rung(
    language_model: type[nn.Module], config: TrainConfig, on_evaluation: OnEvaluation | None = None
) -> Evaluation:
    """Train one rung as `config` says; returns the last evaluation.

    What cannot be done as asked is raised as UserError before training starts. A run that a signal ends is saved, and
    then raises SystemExit.
    """
    started = time.perf_counter()
    script, device = Path(inspect.getfile(language_model)), choose_device(config.device)
    with ranks.process_group(device), unbreakable_output():
        corpus, model, precision = set_up(language_model, config, device)
        console.say_what_starts(script, corpus, config, count_parameters(model), precision)

        config, throughput, compiled = plan(model, corpus, config, precision, started)
        if config.minutes:
            model = build_model(language_model, corpus, config)  # with the dropout that the plan chose
            console.say_what_was_chosen(script, config, corpus)
        state = State.at_start(model, config, compiled=compiled)

        with contextlib.closing(Record(script, config, corpus, count_parameters(model), precision)) as record:
            record.open(state)
            console.say_how_long(config, state, throughput)
            with stop_on_signals() as stop:
                with console.progress_bar(script.stem, state.step, config.steps) as bar:
                    steps = steps_until(stop, state.step, config.steps, bar)
                    for evaluation in train(state, corpus, config, record.precision, steps):
                        record.save_and_log(state)
                        console.show_evaluation(evaluation, bar)
                        if on_evaluation:
                            on_evaluation(evaluation)
                if state.step < config.steps:  # saved here, where a second signal does not end it
                    record.save(state)
                    console.say_how_to_go_on(script, config, state, record)
                    raise SystemExit(stop.exit_status)
        if ranks.rank() == 0:
            console.report(sample(model, corpus, config), config, state, record, time.perf_counter() - started)
        return state.evaluations[-1]


def set_up(language_model: type[nn.Module], config: TrainConfig, device: torch.device) -> tuple[Corpus, nn.Module, str]:
    """The corpus and the untrained model on `device`, and the precision. Raises UserError for what cannot be."""
    if device.index is not None:  # one GPU of several is then meant wherever none is named, as by dropout's seed
        torch.cuda.set_device(device)
    ranks.check_batch_size(config.batch_size)
    check_outputs(config)
    with ranks.local_rank_zero_first():  # the others find the text that it has fetched
        corpus = load_corpus(config.corpus, config.holdout).to(device)
    corpus.check_context(config.block_size)
    encode_prompt(corpus.tokenizer, config.prompt)  # can the model read it?
    model = build_model(language_model, corpus, config)
    precision = choose_precision(config.precision, device, count_parameters(model))
    if device.type != "cpu" and not config.skip_device_check:
        check_device(model, corpus, config, precision)
    return corpus, model, precision


def build_model(language_model: type[nn.Module], corpus: Corpus, config: TrainConfig) -> nn.Module:
    """The model with the initial weights of the seed, on the device that `corpus` is on."""
    torch.manual_seed(config.seed)
    model = language_model(corpus.tokenizer.vocab_size, config).to(corpus.train.device)
    prepare(model, config, corpus)
    return model


def plan(
    model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, started: float
) -> tuple[TrainConfig, Throughput, bool]:
    """`config` with steps and dropout for its minutes, if it has any; how fast it will go; whether to compile.

    started: when the minutes began. Every rank measures, rank 0 decides. `model` is left as it is.
    """
    throughput = measure_throughput(model, corpus, config, precision)
    compiled = compile_pays(corpus.train.device, 60 * config.minutes or throughput.seconds(config))
    if compiled:
        print("compiling, which takes a minute", flush=True)
        try:
            throughput = measure_throughput(model, corpus, config, precision, compiled=True)
        except torch._dynamo.exc.TorchDynamoException as error:  # without a C compiler, say
            print(f"WARNING: compiling failed ({type(error).__name__}); going on without it, slower", file=sys.stderr)
            compiled = False
    if config.minutes:
        if ranks.rank() == 0:
            config = throughput.fit(config, 60 * config.minutes - (time.perf_counter() - started))
            config = with_dropout_for_its_epochs(config, corpus)
        config = ranks.broadcast(config)
    return config, throughput, compiled


def steps_until(stop: Stop, done: int, steps: int, bar: tqdm) -> Iterator[int]:
    for step in range(done, steps):
        if stop.wanted():
            return
        yield step
        bar.update()


def sample(model: nn.Module, corpus: Corpus, config: TrainConfig) -> str:
    ids = generate(
        model,
        encode_prompt(corpus.tokenizer, config.prompt),
        config.sample_length,
        config.block_size,
        temperature=config.temperature,
        top_k=config.top_k,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return corpus.tokenizer.decode(ids).strip("\n")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
