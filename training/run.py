"""A rung's command: set up, plan, train, report."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data import Corpus, load_corpus
from training import console, ranks
from training.cli import errors_in_one_line, parse, unbreakable_output
from training.config import TrainConfig
from training.device import choose_device, choose_precision, compile_pays
from training.device_check import check_device
from training.generation import encode_prompt, generate
from training.hooks import prepare
from training.interrupt import Stop, steps_until, stop_on_signals
from training.loop import train
from training.minutes import is_large_enough, sets_dropout, sizes
from training.record import Record, check_outputs
from training.resume import metadata_before
from training.state import Evaluation, State
from training.threads import choose_threads, restored_threads
from training.throughput import Throughput, measure_throughput
from training.timed_run import begin, plan, train_until

OnStep = Callable[[int], None]  # called with the number of steps that are done


def run(language_model: type[nn.Module], config_type: type[TrainConfig], args: Sequence[str] | None = None) -> None:
    """What `python RUNG.py` does: read the flags, train, log, save, sample."""
    with errors_in_one_line():
        module = sys.modules[language_model.__module__]
        started = time.perf_counter()
        if args is None:  # typed by a user: add the seconds that the process took to import
            started -= time.process_time()
        config = parse(config_type, description=inspect.getdoc(module), args=args)
        train_rung(language_model, config, started=started)


def train_rung(
    language_model: type[nn.Module],
    config: TrainConfig,
    on_step: OnStep = lambda done: None,
    started: float | None = None,
) -> Evaluation:
    """Train one rung as `config` says; returns the last evaluation.

    started: when its minutes began, by time.perf_counter; by default now. Raises UserError for settings that cannot
    work here, before training starts; and for a run that another process trains, with --minutes after its timed start.
    A run that a signal ends is saved, and then raises SystemExit.
    """
    started = time.perf_counter() if started is None else started
    script, device = Path(inspect.getfile(language_model)), choose_device(config.device)
    with ranks.process_group(device), unbreakable_output(), restored_threads():
        keep_dropout = sets_dropout(config)  # --minutes chooses it otherwise
        corpus, model, config, precision, throughput = choose_size(language_model, config, device)
        deadline = started + 60 * config.minutes  # by time.perf_counter; for runs with --minutes
        console.print_start(script, corpus, config, count_parameters(model), precision)
        throughput, compiled = choose_compile(model, corpus, config, precision, throughput)
        if config.minutes:
            config = plan(corpus, config, throughput, deadline, keep_dropout)
            model = build_model(language_model, corpus, config)  # with the dropout of the plan
        state = State.at_start(model, config, compiled=compiled)
        with stop_on_signals() as stop:
            if config.minutes:
                config, throughput = begin(state, corpus, config, precision, throughput, deadline, script, stop)
            with contextlib.closing(Record(script, config, corpus, count_parameters(model), precision)) as record:
                train_and_record(state, record, throughput, stop, on_step, deadline)
        if ranks.rank() == 0:
            console.report(sample(model, corpus, config), config, state, record, time.perf_counter() - started)
        return state.evaluations[-1]


def choose_size(
    language_model: type[nn.Module], config: TrainConfig, device: torch.device
) -> tuple[Corpus, nn.Module, TrainConfig, str, Throughput]:
    """The corpus, the model, the settings, the precision and the throughput of the first size that is large enough."""
    corpus, rung, threads = None, Path(inspect.getfile(language_model)).stem, torch.get_num_threads()
    for candidate, too_many_epochs in sizes(config):
        torch.set_num_threads(threads)
        corpus, model, precision = set_up(language_model, candidate, device, corpus)
        measure = partial(measure_throughput, model, corpus, candidate, precision)
        config, throughput = choose_threads(measure, candidate, corpus, rung)
        if is_large_enough(config, throughput, corpus, too_many_epochs):
            break
    return corpus, model, config, precision, throughput


def set_up(
    language_model: type[nn.Module], config: TrainConfig, device: torch.device, corpus: Corpus | None = None
) -> tuple[Corpus, nn.Module, str]:
    """The corpus, loaded unless it is given, the untrained model on `device`, and the precision.

    Raises UserError for settings that cannot work here.
    """
    if device.type == "cuda" and device.index is not None:  # for calls that name no GPU, such as seeding dropout
        torch.cuda.set_device(device)
    ranks.check_batch_size(config.batch_size)
    check_outputs(config)
    if corpus is None:
        with ranks.local_rank_zero_first():  # the others find the fetched text
            corpus = load_corpus(config.corpus, config.holdout).to(device)
    corpus.check_context(config.block_size)
    encode_prompt(corpus.tokenizer, config.prompt)  # raises UserError if the model cannot read it
    model = build_model(language_model, corpus, config)
    asked, before = config.precision, metadata_before(Path(inspect.getfile(language_model)).stem, config, corpus.sha256)
    if before and asked == "auto":  # a resumed run keeps its precision, which the device check then checks
        asked = before["precision"]
    precision = choose_precision(asked, device, count_parameters(model))
    if device.type != "cpu" and not config.skip_device_check:
        check_device(model, corpus, config, precision)
    return corpus, model, precision


def build_model(language_model: type[nn.Module], corpus: Corpus, config: TrainConfig) -> nn.Module:
    """The model with the initial weights of the seed, on the device that `corpus` is on."""
    torch.manual_seed(config.seed)
    model = language_model(corpus.tokenizer.vocab_size, config).to(corpus.train.device)
    prepare(model, config, corpus)
    return model


def choose_compile(
    model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, throughput: Throughput
) -> tuple[Throughput, bool]:
    """The throughput of the run, and whether it is compiled. throughput: without compiling."""
    if not compile_pays(corpus.train.device, 60 * config.minutes or throughput.seconds(config)):
        return throughput, False
    print("compiling, which takes a minute", flush=True)
    try:
        return measure_throughput(model, corpus, config, precision, compiled=True), True
    except torch._dynamo.exc.TorchDynamoException as error:  # for example without a C compiler
        print(f"WARNING: compiling failed ({type(error).__name__}); going on without it, slower", file=sys.stderr)
        return throughput, False


def train_and_record(
    state: State, record: Record, throughput: Throughput, stop: Stop, on_step: OnStep, deadline: float
) -> None:
    """Train from the current step to the end; save, log and show each evaluation.

    deadline: of a run with --minutes, by time.perf_counter. If a signal ends it earlier, the run is saved, and then
    raises SystemExit.
    """
    corpus, config = record.corpus, record.config
    record.open(state)
    if config.minutes:  # the run has begun; it can be saved now that its number of steps is known
        record.save_and_log(state)
    else:
        console.print_duration(config, state, throughput)
    on_step(state.step)
    with console.progress_bar(record.script.stem, state.step, config.steps) as bar:
        steps = steps_until(stop, state.step, config.steps, bar, on_step)
        if config.minutes:
            evaluations = train_until(deadline, state, corpus, config, record.precision, throughput, steps)
        else:
            evaluations = train(state, corpus, config, record.precision, steps)
        for evaluation in evaluations:
            record.save_and_log(state)
            console.show_evaluation(evaluation, bar)
    if state.step < config.steps:  # still inside stop_on_signals, so a second SIGTERM does not interrupt saving
        record.save(state)
        console.print_resume_command(record.script, config, state, record)
        raise SystemExit(stop.exit_status)


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
