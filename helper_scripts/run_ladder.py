"""Train rungs with several seeds, as many runs at a time as there are cores, then draw the plot and print the table.

Without names: all rungs of the budget. Its own settings are for rungs 1 to 7, since those above take an hour or more
with them; --budget laptop trains these in a small size, --budget short in their own size for 500 steps. A name
may bring flags, in quotes: "residual --n-layer 1".
What the log has already, with the same settings, seed, text, code and torch, is not trained again unless --again asks
for it; what was stopped is gone on with. Each run has one thread: small rungs are bound by the overhead of calls and
gain next to nothing from a second.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import tyro
from tqdm import tqdm

from data import LOSS_CSV, Corpus, UserError, has_rows, load_corpus, read_log
from helper_scripts.ladder_table import markdown_table
from helper_scripts.models import at_budget, config_of, rung_module, rungs_of
from helper_scripts.plot_loss import check_picture, picture_of, write_plot
from helper_scripts.results import Budget, load_results
from helper_scripts.workers import Result, Run, train_all
from training import TrainConfig
from training.checkpoint import checkpoint_path
from training.cli import errors_in_one_line, parse, unbreakable_output
from training.config import RUNS_DIR, fingerprint
from training.device import choose_device
from training.provenance import ROOT, unchanged_since
from training.resume import unfinished


@dataclass(frozen=True)
class Options:
    rungs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # rungs, by name; none is all of the budget's
    seeds: tuple[int, ...] = (1,)  # how many, from 0 on; several numbers are the seeds themselves (7 7 is 7 alone)
    budget: Budget = "own"  # the settings to train them in
    jobs: int = 0  # runs at a time, one thread each; 0 is one a core, or one on a GPU; a single run has all cores
    again: bool = False  # train what the log has already, too
    steps: int | None = None  # updates, in place of each rung's own number
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    corpus: str = "auto"  # as for a rung: a text file, auto or pydoc
    loss_csv: Path = LOSS_CSV  # the log that the runs join
    runs_dir: Path = RUNS_DIR  # where the finished models go
    out: Path | None = None  # the picture to draw afterwards; by default the budget's own in images/


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        if options.jobs < 0:
            raise UserError(f"--jobs is {options.jobs}; it has to be 0 or more")
        variants = options.steps is not None or any(" " in label for label in options.rungs)
        options = replace(options, out=options.out or picture_of(options.budget, variants))
        check_picture(options.out)
        all_configs(options)  # does all that was asked for exist?
        corpus = load_corpus(options.corpus)  # fetched once, before several processes want it
        if corpus.name == "pydoc":
            options = replace(options, corpus="pydoc")  # for all of them, even if one could fetch the other by then
        configs = all_configs(options)
        rows = read_log(options.loss_csv) if has_rows(options.loss_csv) else None
        runs = left_to_do(configs, rows, corpus, options)
        if known := len(configs) - len(runs):
            print(f"{known} of {len(configs)} runs are in the log already, of this very code; --again trains them anew")
        if stopped := sum(run.config.resume for run in runs):
            print(f"{stopped} of {len(configs)} runs were stopped before; going on with them")
        with unbreakable_output():
            failed = _train(runs, options.jobs or _at_a_time(options.device)) if runs else []
        if len(failed) < len(configs):
            results = load_results(options.loss_csv, corpus.name, variants, budget=options.budget)
            print(f"\n{markdown_table(results)}\n")
            try:
                write_plot(results, options.out)
            except UserError as error:
                failed.append(str(error))
        if failed:
            raise UserError("; ".join(failed))


def all_configs(options: Options) -> list[tuple[str, TrainConfig]]:
    """Rung and settings of each run that was asked for. Raises UserError where that is none, or one that cannot be."""
    seeds = options.seeds if len(options.seeds) != 1 else range(options.seeds[0])
    places = {"corpus": options.corpus, "loss_csv": options.loss_csv, "runs_dir": options.runs_dir}
    more = places | {"device": options.device} | ({} if options.steps is None else {"steps": options.steps})
    labels = [at_budget(label, options.budget) for label in options.rungs] or rungs_of(options.budget)
    configs = {  # each once, whatever was typed twice
        (config_of(label, seed=seed, sample_length=0, **more), label.split()[0]): None
        for label in labels
        for seed in seeds
    }
    if not configs:
        raise UserError("there is nothing to train: name a rung, and --seeds 1 or more")
    return [(rung, config) for config, rung in configs]


def left_to_do(
    configs: list[tuple[str, TrainConfig]], rows: pd.DataFrame | None, corpus: Corpus, options: Options
) -> list[Run]:
    """Those that are not in the log `rows`; the longest come first, so that none of them is left over alone.

    What was stopped is to be gone on with.
    """
    timed = read_log(LOSS_CSV) if rows is None and LOSS_CSV.exists() else rows
    device = choose_device(options.device).type
    runs = []
    for rung, config in configs:
        if not options.again:
            if rows is not None and _is_logged(rung, config, rows, corpus, device):
                continue
            stopped = unfinished(checkpoint_path(rung, config, corpus.sha256)) is not None
            config = replace(config, resume=stopped)
        runs.append(Run(rung, config, weight=config.steps * _seconds_a_step(rung, config, timed)))
    return sorted(runs, key=lambda run: -run.weight)


def _is_logged(rung: str, config: TrainConfig, rows: pd.DataFrame, corpus: Corpus, device: str) -> bool:
    """Whether `rows` have this very run, of the code that is here."""
    rows = rows[rows["step"] == rows["steps"]]
    same = {"experiment": rung, "seed": config.seed, "config": fingerprint(config), "device": device}
    same |= {"corpus_sha256": corpus.sha256[:12], "torch": str(torch.__version__)}
    same |= {} if config.precision == "auto" else {"precision": config.precision}
    for column, value in same.items():
        rows = rows[rows[column] == value]
    code = Path(rung_module(rung).__file__), ROOT / "training", ROOT / "data" / "*.py"  # git knows the files
    return any(unchanged_since(commit, *code) for commit in rows["commit"].unique())


def _at_a_time(device: str) -> int:
    """Runs that share a device without being in one another's way: each core of a CPU takes one, a GPU is one's own."""
    return (os.cpu_count() or 1) if choose_device(device).type == "cpu" else 1


def _seconds_a_step(rung: str, config: TrainConfig, rows: pd.DataFrame | None) -> float:
    """By the log's runs, wherever they ran: of this rung in these settings, or else of others in them, or of any."""
    if rows is not None:
        own, same = rows["experiment"] == rung, rows["config"] == fingerprint(config)
        for alike in (rows[own & same], rows[same], rows[own], rows):
            if steps := alike["step"].sum():
                return max(1e-6, float(alike["seconds"].sum() / steps))
    return 1.0


def _train(runs: list[Run], jobs: int) -> list[str]:
    """Train them under one bar, and tell of each that is done. Returns a line for each that failed."""
    jobs = min(jobs, len(runs))
    total = sum(run.weight for run in runs)
    failed, warnings, shares, lock = [], {}, dict.fromkeys(runs, 0.0), threading.Lock()

    with tqdm(total=total, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}", smoothing=0) as bar:

        def progress(run: Run, share: float) -> None:
            with lock:
                shares[run] = share
                done = sum(run.weight * share for run, share in shares.items())
                ended = sum(share == 1 for share in shares.values())
                bar.set_description_str(f"{ended} of {len(runs)} runs, {jobs} at a time", refresh=False)
                bar.update(min(done, total) - bar.n)
                bar.refresh()

        def finished(run: Run, result: Result) -> None:
            progress(run, 1.0)
            warnings.update(dict.fromkeys(result.warnings))
            if result.error:
                failed.append(f"{run.name} failed: {result.error}")
            bar.write(f"{run.name}: {result.error or f'validation loss {result.val_loss:.4f}'}")

        train_all(runs, jobs, progress, finished)
    print(*warnings, sep="\n", end="\n" if warnings else "")
    return failed


if __name__ == "__main__":
    main()
