"""A rung's command, from its flags to its sample."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import Corpus, load_corpus
from training import ranks
from training.cli import as_typed, errors_in_one_line, parse, unbreakable_output
from training.config import TrainConfig
from training.device import choose_device, choose_precision, describe, worth_compiling
from training.device_check import check_device
from training.interrupt import Stop, stop_on_signals
from training.loop import train
from training.pace import measure_pace
from training.record import Record
from training.sampling import encode_prompt, sample
from training.state import Evaluation, State

TRUSTED = "cpu"  # the kind of device that all others are checked against
LONG = 120  # seconds; a run that takes longer says so before it starts
FAR = 0.1  # of the minutes that were asked for; a run that misses them by more says why


def run(language_model: type[nn.Module], config_type: type[TrainConfig], args: Sequence[str] | None = None) -> None:
    """What `python RUNG.py` does: read the flags, train, log, save, sample."""
    with errors_in_one_line():
        module = sys.modules[language_model.__module__]
        train_rung(language_model, parse(config_type, description=inspect.getdoc(module), args=args))


def train_rung(
    language_model: type[nn.Module], config: TrainConfig, tell: Callable[[Evaluation], None] | None = None
) -> Evaluation:
    """Train one rung as `config` says, telling the terminal how it goes, and `tell` of each evaluation.

    Returns the last of them. Whatever can be wrong with what was asked is raised as UserError before training starts.
    A run that a signal ends is saved, and then raises SystemExit.
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    if device.index is not None:  # one GPU of several: it is then meant by whatever names none, such as dropout's seed
        torch.cuda.set_device(device)
    # in bf16, queries meet the fp32 gains of an RMSNorm: that is right, if not for torch's fastest kernel
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    with ranks.joined(device), unbreakable_output():
        return _train(language_model, config, device, started, tell or (lambda evaluation: None))


def _train(
    language_model: type[nn.Module],
    config: TrainConfig,
    device: torch.device,
    started: float,
    tell: Callable[[Evaluation], None],
) -> Evaluation:
    script = Path(inspect.getfile(language_model))
    ranks.check_batch_size(config.batch_size)
    with ranks.one_first():  # the others find the text that it has fetched
        corpus = load_corpus(config.corpus)
    corpus.check_context(config.block_size)
    prompt = encode_prompt(corpus.tokenizer, config.prompt)

    torch.manual_seed(config.seed)
    model = language_model(corpus.tokenizer.vocab_size, config).to(device)
    corpus = corpus.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = ranks.same(choose_precision(config.precision, device, parameters))
    state = State.at_start(model, config)
    with contextlib.closing(Record(script.stem, config, corpus, parameters, precision)) as record:
        record.open(state)
        precision = record.precision  # a resumed run keeps its own
        print(
            f"{script.stem}: {parameters:,} parameters, {precision} on {describe(device)}, seed {config.seed}\n"
            f"corpus {corpus.name}, sha256 {corpus.sha256[:12]}: {len(corpus.train):,} characters to train on, "
            f"{len(corpus.val):,} to validate on, {corpus.tokenizer.vocab_size} distinct",
            flush=True,
        )
        if device.type != TRUSTED and not config.skip_device_check:
            check_device(model, corpus, config, precision)
        if state.step == config.steps and state.evaluations:
            print(f"this run finished with step {state.step:,}: nothing is left to train")
        else:
            config = _plan(state, corpus, config, precision, started)
            record.planned(config)

        with stop_on_signals() as stop, _progress(script.stem, state.step, config.steps) as bar:
            for evaluation in train(state, corpus, config, precision, _steps(state.step, config.steps, bar, stop)):
                record.keep(state)
                _show(evaluation, bar)
                tell(evaluation)
            if state.step < config.steps:
                record.save(state)
        if state.step < config.steps:
            _say_how_to_go_on(script, config, state, record)
            raise SystemExit(stop.exit_status)

    if ranks.rank() == 0:
        print(f"\n{_sampled_text(model, corpus, config, prompt)}\n")
    last = state.evaluations[-1]
    print(f"validation loss {last.val_loss:.4f} after {last.seconds:.1f} s of training")
    print(f"logged in {config.loss_csv} as {record.run}; model saved as {record.checkpoint}")
    if config.minutes:
        print(_off_the_minutes(config, time.perf_counter() - started, last.seconds / config.steps), end="")
    if record.unsaved:
        raise record.unsaved
    return last


def _plan(state: State, corpus: Corpus, config: TrainConfig, precision: str, started: float) -> TrainConfig:
    """`config` with the steps that fit into its minutes, if it has any; `state` is compiled where that pays.

    Tells how long it will be. started: when the minutes began.
    """
    model, device = state.model, corpus.train.device
    to_do = replace(config, steps=config.steps - state.step)
    pace = ranks.same(measure_pace(model, corpus, config, precision))
    if worth_compiling(device, 60 * config.minutes or pace.seconds(to_do)):
        print("compiling, which takes a minute", flush=True)
        try:
            pace = ranks.same(measure_pace(model, corpus, config, precision, compiled=True))
            state.forward = torch.compile(state.forward)
        except torch._dynamo.exc.TorchDynamoException as error:  # for want of a C compiler, say
            print(f"WARNING: compiling failed ({type(error).__name__}); going on without it, slower", file=sys.stderr)
    if config.minutes:
        config = to_do = ranks.same(pace.fit(config, 60 * config.minutes - (time.perf_counter() - started)))
    size = f"{config.batch_size} x {config.block_size} characters"
    if state.evaluations:  # by an earlier process
        print(f"going on after step {state.step:,} of {config.steps:,}, of {size} each", flush=True)
    else:
        print(f"{config.steps:,} steps of {size}; first, the untrained loss", flush=True)
    if not config.minutes and pace.seconds(to_do) > LONG:
        print(_announcement(pace.seconds(to_do), begun=bool(state.evaluations)), flush=True)
    return config


def _progress(experiment: str, done: int, steps: int) -> tqdm:
    # where nobody watches, in a file or a pipe, a line every few seconds is enough
    # and the rate is that of the whole run, for the evaluations to come take their time too
    pause = 0.1 if sys.stderr.isatty() else 5
    return tqdm(total=steps, initial=done, desc=experiment, unit="step", mininterval=pause, smoothing=0)


def _show(evaluation: Evaluation, bar: tqdm) -> None:
    if evaluation.step == 0:
        bar.reset()  # its clock starts with the first step
    bar.write(f"step {evaluation.step:>6,}  train {evaluation.train_loss:.4f}  val {evaluation.val_loss:.4f}")
    sys.stdout.flush()  # for whoever reads along through a pipe


def _steps(done: int, steps: int, bar: tqdm, stop: Stop) -> Iterator[int]:
    for step in range(done, steps):
        if stop.wanted():
            return
        yield step
        bar.update()


def _say_how_to_go_on(script: Path, config: TrainConfig, state: State, record: Record) -> None:
    kept = "not saved" if record.unsaved else "saved"
    again = as_typed(script, replace(config, minutes=0.0, resume=True))
    print(f"stopped after step {state.step:,} of {config.steps:,}, {kept}; to go on: {again}", file=sys.stderr)


def _announcement(seconds: float, begun: bool) -> str:
    """How long it will be, and how to have it shorter; of one that has `begun`, that would be another run."""
    minutes = seconds / 60
    duration = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    if begun:
        return f"this will take about {duration} more"
    less = max((choice for choice in (1, 2, 5, 10) if choice < minutes / 2), default=1)
    return f"this will take about {duration}; for less, stop it and start again with --minutes {less}"


def _off_the_minutes(config: TrainConfig, took: float, step: float) -> str:
    """A line where `took` seconds are far from those asked for, with the steps that fit at so many seconds a `step`."""
    asked = 60 * config.minutes
    if abs(asked - took) <= max(FAR * asked, 2 * step):  # as close as whole steps come
        return ""
    change = "faster" if took < asked else "slower"
    steps = max(1, config.steps + int((asked - took) / step))
    return (
        f"this took {took / 60:.1f} minutes, not {config.minutes:g}: the machine was {change} than while its steps "
        f"were timed, as when other work ends or begins; at this pace, --steps {steps} fills them\n"
    )


def _sampled_text(model: nn.Module, corpus: Corpus, config: TrainConfig, prompt: Tensor) -> str:
    generator = torch.Generator().manual_seed(config.seed)
    ids = sample(
        model,
        prompt,
        config.sample_length,
        config.block_size,
        temperature=config.temperature,
        top_k=config.top_k,
        generator=generator,
    )
    return corpus.tokenizer.decode(ids).strip("\n")
