"""A rung's command, from its flags to its sample."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import Corpus, LossLog, UserError, load_corpus
from training.checkpoint import check_folder, save_checkpoint
from training.cli import errors_in_one_line, parse
from training.config import TrainConfig, changed_flags, fingerprint
from training.device import choose_device, choose_precision, describe, worth_compiling
from training.loop import Evaluation, train
from training.pace import measure_pace
from training.provenance import commit, run_name
from training.sampling import sample

LONG = 120  # seconds; a run that takes longer says so before it starts


def run(language_model: type[nn.Module], config_type: type[TrainConfig], args: Sequence[str] | None = None) -> None:
    """What `python RUNG.py` does: read the flags, train, log, save, sample."""
    with errors_in_one_line():
        module = sys.modules[language_model.__module__]
        train_rung(language_model, parse(config_type, description=inspect.getdoc(module), args=args))


def train_rung(language_model: type[nn.Module], config: TrainConfig) -> Evaluation:
    """Train one rung as `config` says, telling the terminal how it goes. Returns the last evaluation.

    Whatever can be wrong with what was asked is raised as UserError before training starts.
    """
    started = time.perf_counter()
    experiment = Path(inspect.getfile(language_model)).stem
    device = choose_device(config.device)
    corpus = load_corpus(config.corpus)
    corpus.check_context(config.block_size)
    prompt = _encode_prompt(corpus, config.prompt)
    log = LossLog(config.loss_csv)
    log.check()
    check_folder(config.runs_dir)

    torch.manual_seed(config.seed)
    model = language_model(corpus.tokenizer.vocab_size, config).to(device)
    corpus = corpus.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = choose_precision(config.precision, device, parameters)
    print(
        f"{experiment}: {parameters:,} parameters, {precision} on {describe(device)}, seed {config.seed}\n"
        f"corpus {corpus.name}, sha256 {corpus.sha256[:12]}: {len(corpus.train):,} characters to train on, "
        f"{len(corpus.val):,} to validate on, {corpus.tokenizer.vocab_size} distinct",
        flush=True,
    )
    config, compiled = _plan(model, corpus, config, precision, started)
    facts = {
        "run": run_name(experiment, config.seed),
        "experiment": experiment,
        "seed": config.seed,
        "steps": config.steps,
        "parameters": parameters,
        "device": device.type,
        "precision": precision,
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256[:12],
        "config": fingerprint(config),
        "flags": changed_flags(config),
        "commit": commit(),
        "torch": str(torch.__version__),  # which is a type of its own, that a checkpoint may not hold
    }

    with _progress(experiment, config.steps) as bar:
        for evaluation in train(model, corpus, config, precision, _counted(config.steps, bar), compiled=compiled):
            if evaluation.step == 0:
                bar.reset()  # its clock starts with the first step
            bar.write(f"step {evaluation.step:>6,}  train {evaluation.train_loss:.4f}  val {evaluation.val_loss:.4f}")
            if not (math.isfinite(evaluation.train_loss) and math.isfinite(evaluation.val_loss)):
                raise UserError(
                    f"the loss is not a number after step {evaluation.step:,}; try a smaller --learning-rate"
                )
            log.append(facts | _measured(evaluation, config))

    name = f"{experiment}-seed{config.seed}-{facts['corpus_sha256'][:6]}-{facts['config']}.pt"
    checkpoint = config.runs_dir / name
    save_checkpoint(checkpoint, model, config, facts | {"alphabet": "".join(corpus.tokenizer.chars)})
    print(f"\n{_sampled_text(model, corpus, config, prompt)}\n")
    print(f"validation loss {evaluation.val_loss:.4f} after {evaluation.seconds:.1f} s of training")
    print(f"logged in {config.loss_csv} as {facts['run']}; model saved as {checkpoint}")
    return evaluation


def _plan(
    model: nn.Module, corpus: Corpus, config: TrainConfig, precision: str, started: float
) -> tuple[TrainConfig, bool]:
    """`config` with the steps that fit into its minutes, if it has any, and whether to compile the model.

    Tells how long it will be. started: when the minutes began.
    """
    pace = measure_pace(model, corpus, config, precision)
    compiled = worth_compiling(corpus.train.device, 60 * config.minutes or pace.seconds(config))
    if compiled:
        print("compiling, which takes a minute", flush=True)
        try:
            pace = measure_pace(model, corpus, config, precision, compiled=True)
        except torch._dynamo.exc.TorchDynamoException as error:  # for want of a C compiler, say
            print(f"WARNING: compiling failed ({type(error).__name__}); going on without it, slower", file=sys.stderr)
            compiled = False
    if config.minutes:
        config = pace.fit(config, 60 * config.minutes - (time.perf_counter() - started))
    size = f"{config.batch_size} x {config.block_size} characters"
    print(f"{config.steps:,} steps of {size}; first, the untrained loss", flush=True)
    if not config.minutes and pace.seconds(config) > LONG:
        print(_announcement(pace.seconds(config)), flush=True)
    return config, compiled


def _measured(evaluation: Evaluation, config: TrainConfig) -> dict:
    return {
        "step": evaluation.step,
        "train_loss": f"{evaluation.train_loss:.6f}",
        "val_loss": f"{evaluation.val_loss:.6f}",
        "tokens": evaluation.step * config.batch_size * config.block_size,
        "seconds": f"{evaluation.seconds:.2f}",
    }


def _progress(experiment: str, steps: int) -> tqdm:
    # where nobody watches, in a file or a pipe, a line every few seconds is enough
    # and the rate is that of the whole run, for the evaluations to come take their time too
    pause = 0.1 if sys.stderr.isatty() else 5
    return tqdm(total=steps, desc=experiment, unit="step", mininterval=pause, smoothing=0)


def _counted(steps: int, bar: tqdm) -> Iterator[int]:
    for step in range(steps):
        yield step
        bar.update()


def _announcement(seconds: float) -> str:
    minutes = seconds / 60
    duration = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    less = max((choice for choice in (1, 2, 5, 10) if choice < minutes / 2), default=1)
    return f"this will take about {duration}; for less, stop it and start again with --minutes {less}"


def _encode_prompt(corpus: Corpus, prompt: str) -> Tensor:
    """int64 (T,), T >= 1. An empty prompt is a line break, or the first character of a corpus that has none."""
    if not prompt:
        prompt = "\n" if "\n" in corpus.tokenizer.chars else corpus.tokenizer.chars[0]
    try:
        return corpus.tokenizer.encode(prompt).long()
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None


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
