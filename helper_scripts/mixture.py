"""Measure a mixture of models: the exact loss of the mean of their probabilities, and of each model alone.

A model is a checkpoint, or the latest of a rung. All have to be trained on the same text and the same split. All are
evaluated in windows of the smallest block size among them, so a model with a larger one has a higher loss here than
alone. --loss-csv adds the mixture to a log, as a row of the rung "mixture", with the names of the runs as its flags;
plots and tables of the ladder leave it out.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from data import Corpus, LossLog, UserError, consecutive_windows, load_corpus
from helper_scripts.models import Trained, load_models
from helper_scripts.results import MIXTURE
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR
from training.device import choose_device, describe, processor
from training.evaluate import exact_loss
from training.generation import mix
from training.loop import train_piece
from training.provenance import commit, run_name
from training.run import count_parameters


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # two or more checkpoints or rungs
    corpus: str = ""  # the text that they were trained on; by default, as in the first model's run
    device: str = "auto"  # cpu, cuda or mps; auto takes cuda if it is there, else mps, else cpu
    runs_dir: Path = RUNS_DIR  # where the checkpoints are
    loss_csv: Path | None = None  # the log to add the mixture to; by default none


class Mixture(nn.Module):
    """Several models as one, for the loss: idx, int64 (B, T) -> logarithm of their mean probabilities, (B, T, V).

    T is at most the smallest block size. To sample, `stream` takes the models themselves, which then keep their caches.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, idx: Tensor) -> Tensor:
        return mix([model(idx) for model in self.models])


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        if len(options.models) < 2:
            raise UserError("name two models or more, checkpoints or rungs")
        device = choose_device(options.device)
        trained = load_models(options.runs_dir, options.models)
        if options.loss_csv:
            LossLog(options.loss_csv).check()
            for each in trained:
                if not each.finished:
                    raise UserError(f"{each.path} is of an unfinished run; leave out --loss-csv, or finish the run")
        corpus = common_corpus(trained, options.corpus).to(device)
        block_size = min(each.config.block_size for each in trained)
        split = "held-out end of the train split" if trained[0].config.holdout else "validation split"
        print(
            f"corpus {corpus.name}, sha256 {corpus.sha256[:12]}, {split}: {len(corpus.val):,} characters "
            f"in windows of {block_size}, fp32 on {describe(device)}",
            flush=True,
        )
        *losses, mixed = measure([each.model.to(device) for each in trained], corpus.val, block_size)
        sizes, runs = [count_parameters(each.model) for each in trained], [each.metadata["run"] for each in trained]
        for loss, size, run in zip(losses, sizes, runs, strict=True):
            print(f"loss {loss:.4f}, {size:,} parameters: {run}")
        print(f"loss {mixed:.4f}, {sum(sizes):,} parameters: mixture of {', '.join(runs)}")
        if options.loss_csv:
            train_loss = exact_loss(Mixture([each.model for each in trained]).eval(), train_piece(corpus), block_size)
            LossLog(options.loss_csv).append(row(trained, device, train_loss, mixed))


def row(trained: Sequence[Trained], device: torch.device, train_loss: float, val_loss: float) -> dict:
    """The mixture's row of the log: what was spent on its models, and what they have in common."""
    every = [each.metadata for each in trained]
    flags = " ".join(each["run"] for each in every)
    steps = sum(each["steps"] for each in every)

    def common(name: str) -> str:
        return " ".join(dict.fromkeys(str(each[name]) for each in every))

    return {
        "run": run_name(MIXTURE, every[0]["seed"]),
        "rung": MIXTURE,
        "seed": every[0]["seed"],
        "step": steps,
        "steps": steps,
        "train_loss": f"{train_loss:.6f}",
        "val_loss": f"{val_loss:.6f}",
        "tokens": sum(e.metadata["steps"] * e.config.batch_size * e.config.block_size for e in trained),
        "seconds": f"{sum(each.seconds for each in trained):.2f}",
        "parameters": sum(each["parameters"] for each in every),
        "device": device.type,
        "precision": "fp32",
        "corpus": every[0]["corpus"],
        "corpus_sha256": every[0]["corpus_sha256"],
        "config": hashlib.sha256(flags.encode("utf-8")).hexdigest()[:8],
        "flags": flags,
        "rung_code": common("rung_code"),
        "shared_code": common("shared_code"),
        "commit": commit(),
        "torch": str(torch.__version__),
        "processor": processor(device),
        "threads": torch.get_num_threads(),
    }


def common_corpus(trained: Sequence[Trained], which: str) -> Corpus:
    """The text and the split that all were trained on; `which` names it, as --corpus does, or is empty.

    Raises UserError if they differ, or if that text is not found.
    """
    first, *others = trained
    corpus_of = "{0[corpus]}, sha256 {0[corpus_sha256]}".format
    for other in others:
        if other.metadata["corpus_sha256"] != first.metadata["corpus_sha256"]:
            raise UserError(
                f"{first.path} and {other.path} were trained on different texts: "
                f"{corpus_of(first.metadata)}, and {corpus_of(other.metadata)}"
            )
        if other.config.holdout != first.config.holdout:
            one, two = (first, other) if first.config.holdout else (other, first)
            raise UserError(f"{one.path} was trained with --holdout, {two.path} without: their splits differ")
    corpus = load_corpus(which or first.config.corpus, first.config.holdout)
    if corpus.sha256[:12] != first.metadata["corpus_sha256"]:
        raise UserError(
            f"the models were trained on {corpus_of(first.metadata)}, not on {corpus.name}, sha256 "
            f"{corpus.sha256[:12]}; name their text with --corpus"
        )
    return corpus


def measure(models: Sequence[nn.Module], ids: Tensor, block_size: int) -> list[float]:
    """The exact loss of each on `ids` (n,), then that of their mixture, in nats per character.

    A progress bar appears if that takes more than a few seconds.
    """
    total = 2 * len(models) * consecutive_windows(ids, block_size)[0].numel()  # each alone, then in the mixture
    pause = 0.1 if sys.stderr.isatty() else 5
    with tqdm(total=total, unit=" characters", unit_scale=True, mininterval=pause, delay=2) as bar:

        def advance(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            bar.update(inputs[0].numel())

        hooks = [model.register_forward_hook(advance) for model in models]
        losses = [exact_loss(model, ids, block_size) for model in [*models, Mixture(models).eval()]]
    for hook in hooks:
        hook.remove()
    return losses


if __name__ == "__main__":
    main()
