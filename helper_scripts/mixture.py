"""Measure a mixture of models: the exact loss of the mean of their probabilities, and of each model alone.

A model is a checkpoint, or the latest of a rung. All have to be of the same text, and of the same split of it. All are
read in windows of the smallest block size among them, so one with a larger block size loses something here. Nothing is
logged, since the log's rows are evaluations of single runs; the lines name the runs instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor, nn
from tqdm import tqdm

from data import Corpus, UserError, consecutive_windows, load_corpus
from helper_scripts.models import Trained, load_models
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR
from training.device import choose_device, describe
from training.evaluate import exact_loss
from training.generation import mix
from training.run import count_parameters


@dataclass(frozen=True)
class Options:
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # two or more checkpoints or rungs
    corpus: str = ""  # the text that they were trained on; by default where the first one's run found it
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    runs_dir: Path = RUNS_DIR  # where the checkpoints are


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


def common_corpus(trained: Sequence[Trained], which: str) -> Corpus:
    """The text and the split that all were trained on; `which` names it, as --corpus does, or is empty.

    Raises UserError where they differ, and where that text is not found.
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

    A progress bar appears where that takes more than a few seconds.
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
