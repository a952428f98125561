"""What a run prints: at its start, in training, at its end."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data import Corpus
from data.files import visible
from training.cli import as_typed
from training.config import TrainConfig
from training.device import describe
from training.overfitting import lowest_before_overfitting
from training.record import Record
from training.state import Evaluation, State
from training.throughput import Throughput, epochs

LONG = 120  # seconds; a run that takes longer says so before it starts
OFF = 0.05  # share of --minutes; a run that is off by more says why


def print_start(script: Path, corpus: Corpus, config: TrainConfig, parameters: int, precision: str) -> None:
    held_out = ", held out of the train split" if config.holdout else ""
    print(
        f"{script.stem}: {parameters:,} parameters, {precision} on {describe(corpus.train.device)}, "
        f"seed {config.seed}\n"
        f"corpus {corpus.name}, sha256 {corpus.sha256[:12]}: {len(corpus.train):,} characters to train on, "
        f"{len(corpus.val):,} to validate on{held_out}, {corpus.tokenizer.vocab_size} distinct",
        flush=True,
    )


def print_plan(plan: TrainConfig) -> None:
    """Before the timed start of a run with --minutes."""
    dropout = f", dropout {plan.dropout:g}" if hasattr(plan, "dropout") else ""
    print(
        f"about {plan.steps:,} steps of {plan.batch_size} x {plan.block_size} characters{dropout}; "
        "first the untrained model's loss; then the first steps are timed, and their time decides the number of steps",
        flush=True,
    )


def print_chosen_steps(script: Path, config: TrainConfig, corpus: Corpus) -> None:
    """What --minutes chose, as the command that repeats the run."""
    repeat = as_typed(script, replace(config, minutes=0.0))
    print(
        f"{config.steps:,} steps, {epochs(config, corpus):.1f} epochs, fit into {config.minutes:g} minutes here; "
        f"to repeat this run: {repeat}",
        flush=True,
    )


def print_duration(config: TrainConfig, state: State, throughput: Throughput) -> None:
    size = f"{config.batch_size} x {config.block_size} characters"
    begun = bool(state.evaluations)
    if begun:
        print(f"going on after step {state.step:,} of {config.steps:,}, of {size} each", flush=True)
    else:
        print(f"{config.steps:,} steps of {size}; first, the loss of the untrained model", flush=True)
    minutes = throughput.seconds(config, state.step) / 60
    if minutes * 60 > LONG:
        duration = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
        advice = " more" if begun else ""
        if not begun and getattr(config, "teachers", None) != ():  # a default teacher and --minutes exclude each other
            shorter = max(choice for choice in (1, 2, 5, 10) if choice <= minutes / 2)
            advice = f"; for a shorter run, stop it and start again with --minutes {shorter}"
        print(f"this will take about {duration}{advice}", flush=True)


def progress_bar(rung: str, done: int, steps: int) -> tqdm:
    # smoothing=0: the rate is that of the whole run, because the evaluations to come take time too
    return tqdm(total=steps, initial=done, desc=rung, unit="step", mininterval=refresh_seconds(), smoothing=0)


def refresh_seconds() -> float:
    """The least time between two updates of a progress bar; in a file or a pipe, fewer lines are enough."""
    return 0.1 if sys.stderr.isatty() else 5


def show_evaluation(evaluation: Evaluation, bar: tqdm) -> None:
    if evaluation.step == 0:
        bar.reset()  # so that its clock starts with the first step
    bar.write(f"step {evaluation.step:>6,}  train {evaluation.train_loss:.4f}  val {evaluation.val_loss:.4f}")
    sys.stdout.flush()  # for those who read it through a pipe


def print_resume_command(script: Path, config: TrainConfig, state: State, record: Record) -> None:
    kept = "not saved" if record.unsaved else "saved"
    again = as_typed(script, replace(config, minutes=0.0, resume=True))
    print(f"stopped after step {state.step:,} of {config.steps:,}, {kept}; to go on: {again}", file=sys.stderr)


def report(sample: str, config: TrainConfig, state: State, record: Record, seconds: float) -> None:
    """The sample, the loss, the log and the checkpoint. seconds: the command's, to compare with --minutes."""
    first, last = state.evaluations[0], state.evaluations[-1]
    print(f"\n{visible(sample)}\n")
    print(f"validation loss {last.val_loss:.4f} after {last.seconds:.1f} s of training")
    if lowest := lowest_before_overfitting(state.evaluations):
        _print_overfitting(config, lowest)
    elif last.val_loss > first.val_loss:
        print(
            f"WARNING: the run has diverged: its loss began at {first.val_loss:.4f}; try a smaller --learning-rate",
            file=sys.stderr,
        )
    print(f"logged in {config.loss_csv} as {record.metadata['run']}")
    if record.unsaved:
        raise record.unsaved
    print(f"model saved as {record.path(finished=True)}")
    off, step = 60 * config.minutes - seconds, last.seconds / config.steps
    if config.minutes and abs(off) > max(OFF * 60 * config.minutes, 2 * step):  # whole steps come no closer
        change = "faster" if off > 0 else "slower"
        print(
            f"this took {seconds / 60:.2f} minutes, not {config.minutes:g}: the machine was {change} than while its "
            f"first steps were timed; at this speed, --steps {max(1, config.steps + int(off / step))} takes that time"
        )


def _print_overfitting(config: TrainConfig, lowest: Evaluation) -> None:
    """Name only flags that this rung has and this run used."""
    shorter = "--minutes" if config.minutes else "--steps"
    dropout = f", or more --dropout than {config.dropout:g}" if hasattr(config, "dropout") else ""
    print(
        f"overfitting: the validation loss was lowest at step {lowest.step:,}, {lowest.val_loss:.4f}, and rose while "
        f"the train loss fell; try fewer {shorter}{dropout}"
    )
