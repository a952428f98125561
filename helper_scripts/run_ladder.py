"""Train rungs with several seeds, as many runs at a time as there are cores. Then draw the plot and print the table.

Without names: rungs 1 to 7; with --preset, all rungs from the eighth on. A name may have its own flags, in quotes:
"residual --n-layer 1". Runs that are in the log are skipped; --again retrains them. Stopped runs are resumed. Several
runs at a time have one thread each, because small rungs gain almost nothing from a second; a single run has all cores.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import tyro
from tqdm import tqdm

from data import LOSS_CSV, Corpus, UserError, has_rows, load_corpus, read_log
from helper_scripts.ladder_table import markdown_table
from helper_scripts.models import RUNGS, config_of, join, one_line, rung_module, rung_path, rungs_of, start_of
from helper_scripts.plot_loss import check_picture, picture_of, write_plot
from helper_scripts.results import Selection, load_results
from helper_scripts.workers import Result, Run, train_all
from training import TrainConfig
from training.checkpoint import checkpoint_path, load_checkpoint
from training.cli import errors_in_one_line, parse, unbreakable_output
from training.config import RUNS_DIR, config_hash
from training.console import refresh_seconds
from training.device import choose_device
from training.presets import Preset
from training.provenance import rung_code, shared_code
from training.teachers import MODERN, default_teacher, has_default_teacher


@dataclass(frozen=True)
class Options:
    rungs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # rungs; by default 1 to 7, or all of a preset
    seeds: tuple[int, ...] = (1,)  # N: seeds 0 to N - 1; several numbers: these seeds (7 7 for seed 7 alone)
    preset: Preset | None = None  # settings instead of the rungs' own
    holdout: bool = False  # validate on the last tenth of the train split, to choose settings
    again: bool = False  # also train runs that are in the log
    steps: int | None = None  # updates, instead of each rung's own number
    device: str = "auto"  # cpu, cuda or mps; auto takes cuda if it is there, else mps, else cpu
    corpus: str = "auto"  # as for a rung: a text file, auto or pydoc
    loss_csv: Path = LOSS_CSV  # the log to add the runs to
    runs_dir: Path = RUNS_DIR  # where the checkpoints are saved
    out: Path | None = None  # the picture to draw afterwards; by default in images/, or beside a log of your own


def main() -> None:
    with errors_in_one_line():
        options = _options()
        variants = options.steps is not None or any(" " in label for label in options.rungs)
        selection = Selection(options.loss_csv, None, options.preset, options.holdout, variants)
        if options.out:
            check_picture(options.out)
        configs, failed = all_configs(options)
        corpus = load_corpus(options.corpus)  # fetched once, before several processes need it
        if options.corpus == "auto" and corpus.name == "pydoc":  # for all runs, even if one could fetch the other now
            configs = [(rung, replace(config, corpus="pydoc")) for rung, config in configs]
        rows = read_log(options.loss_csv) if has_rows(options.loss_csv) else None
        runs = left_to_do(configs, rows, corpus, options)
        if logged := len(configs) - len(runs):
            print(f"{logged} of {len(configs)} runs of the present code are in the log already; --again retrains them")
        if resumed := sum(run.config.resume for run in runs):
            print(f"{resumed} of {len(configs)} runs were stopped before; resuming them")
        runs += [run_of(MODERN.stem, config, rows, corpus) for config in missing_teachers(runs, corpus)]
        if runs:
            with unbreakable_output():
                failed += _train(runs, options.device)
        try:
            selection = replace(selection, corpus=corpus.name)
            results = load_results(selection)
            print(f"\n{markdown_table(results)}\n")
            write_plot(results, options.out or picture_of(selection))
        except UserError as error:
            failed.append(str(error))
        if failed:
            raise UserError("; ".join(failed))


def _options() -> Options:
    try:
        return parse(Options, description=__doc__)
    except UserError as error:
        if "--seeds" in sys.argv and "valid parse" in str(error):  # --seeds takes all words up to the next flag
            raise UserError(f"{error}; name the rungs before --seeds") from None
        raise


def all_configs(options: Options) -> tuple[list[tuple[str, TrainConfig]], list[str]]:
    """Rung and settings of each run that was asked for, and a line for each rung whose file is broken.

    Raises UserError where nothing, or something impossible, was asked for.
    """
    for label in options.rungs:
        if {"--preset", "--holdout"} & {word.partition("=")[0] for word in label.split()}:
            raise UserError(f"{label}: --preset and --holdout are for all runs; put them outside the quotes")
    labels = [join(label, start_of(options.preset, options.holdout)) for label in options.rungs]
    named = [label.split(" ")[0] for label in labels] or RUNGS
    broken = {rung: error for rung in RUNGS if rung in named and (error := _broken(rung))}
    seeds = options.seeds if len(options.seeds) != 1 else range(options.seeds[0])
    more = {name: getattr(options, name) for name in ("corpus", "loss_csv", "runs_dir", "device")}
    more |= {} if options.steps is None else {"steps": options.steps}
    configs = {  # each once, whatever was typed twice
        (rung, config_of(label, seed=seed, sample_length=0, **more)): None
        for label in labels or rungs_of(options.preset, options.holdout)
        if (rung := label.split(" ")[0]) not in broken
        for seed in seeds
    }
    if not configs and not broken:
        raise UserError("there is nothing to train: name a rung, and --seeds 1 or more")
    return list(configs), list(broken.values())


def _broken(rung: str) -> str:
    """The error of a rung whose file cannot be imported, for example in the middle of an edit; else empty."""
    try:
        rung_module(rung).Config()
    except Exception as error:
        return f"{rung} failed: {type(error).__name__}: {one_line(error)}"
    return ""


def left_to_do(
    configs: list[tuple[str, TrainConfig]], rows: pd.DataFrame | None, corpus: Corpus, options: Options
) -> list[Run]:
    """The runs that the log, `rows`, does not have; the longest come first, so that no long run is left at the end."""
    device = {"device": choose_device(options.device).type}
    runs = [
        run_of(rung, config, rows, corpus)
        for rung, config in configs
        if options.again or rows is None or not _is_logged(rung, config, rows, corpus, _code(rung, config) | device)
    ]
    return sorted(runs, key=lambda run: -run.weight)


def run_of(rung: str, config: TrainConfig, rows: pd.DataFrame | None, corpus: Corpus) -> Run:
    """The run of these settings; to be resumed, if it was stopped and is of this code."""
    partial = checkpoint_path(rung, config, corpus.sha256, finished=False)
    config = replace(config, resume=_can_go_on(partial, _code(rung, config)))
    return Run(rung, config, weight=config.steps * _seconds_a_step(rung, config, rows))


def _code(rung: str, config: TrainConfig) -> dict[str, str]:
    """The code hashes in the metadata of a run of the present code."""
    code = {"rung_code": rung_code(rung_path(rung)), "shared_code": shared_code()}
    return code if config.precision == "auto" else code | {"precision": config.precision}


def missing_teachers(runs: list[Run], corpus: Corpus) -> list[TrainConfig]:
    """The settings of modern.py whose models others of `runs` learn from, where they are not saved here, logged or not.

    Each once.
    """
    chosen = {(config_hash(run.config), run.config.seed) for run in runs if run.rung == MODERN.stem}
    missing = {}
    for run in filter(_learns_from_another, runs):
        teacher = default_teacher(run.config)
        key = config_hash(teacher), teacher.seed
        if key not in chosen and not has_default_teacher(run.config, corpus):
            missing[key] = teacher
    return list(missing.values())


def _learns_from_another(run: Run) -> bool:
    """Whether it needs the model of another run, one that it does not name itself."""
    return getattr(run.config, "teachers", None) == ()


def _is_logged(rung: str, config: TrainConfig, rows: pd.DataFrame, corpus: Corpus, code: dict[str, str]) -> bool:
    same = {"rung": rung, "seed": config.seed, "config": config_hash(config), "torch": str(torch.__version__)}
    same |= {"corpus_sha256": corpus.sha256[:12]} | code
    finished = rows[rows["step"] == rows["steps"]]
    return bool(finished[list(same)].eq(pd.Series(same)).all(axis=1).any())


def _can_go_on(partial: Path, code: dict[str, str]) -> bool:
    """Whether there is a stopped run, and this code can resume it."""
    try:
        return code.items() <= load_checkpoint(partial)["metadata"].items()
    except UserError:
        return False


def _seconds_a_step(rung: str, config: TrainConfig, rows: pd.DataFrame | None) -> float:
    """From the log, on any machine: runs of this rung and these settings, else of one of the two, else of any."""
    if rows is not None:
        own, same = rows["rung"] == rung, rows["config"] == config_hash(config)
        for alike in (rows[own & same], rows[same], rows[own], rows):
            if steps := alike["step"].sum():
                return max(1e-6, float(alike["seconds"].sum() / steps))
    return 1.0


def _train(runs: list[Run], device: str) -> list[str]:
    """Train them under one bar, and tell of each that is done. Returns a line for each that failed.

    As many at a time as there are cores; on a GPU one, because several would slow each other down.
    """
    jobs = min(len(runs), cores() if choose_device(device).type == "cpu" else 1)
    total = sum(run.weight for run in runs)
    failed, warnings, done, ended = [], {}, {}, 0

    def words() -> str:
        return f"{ended} of {len(runs)} runs, {jobs} at a time"

    form = {"bar_format": "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}", "smoothing": 0}
    with tqdm(total=total, desc=words(), mininterval=refresh_seconds(), **form) as bar:

        def progress(run: Run, share: float) -> None:
            if run not in done:
                bar.initial += run.weight * share  # the steps that a resumed run has already are not part of the rate
            done[run] = share
            bar.update(min(sum(run.weight * share for run, share in done.items()), total) - bar.n)

        def finished(run: Run, result: Result) -> None:
            nonlocal ended
            progress(run, 1.0)
            ended += 1
            bar.set_description_str(words(), refresh=False)
            warnings.update(dict.fromkeys(result.warnings))
            if result.error:
                failed.append(f"{run.name} failed: {result.error}")
            bar.write(f"{run.name}: {result.error or f'validation loss {result.val_loss:.4f}'}")

        for learning in (False, True):  # models to learn from come first
            some = [run for run in runs if _learns_from_another(run) == learning]
            train_all(some, min(jobs, len(some)), progress, finished)
    print(*warnings, sep="\n", end="\n" if warnings else "")
    return failed


def cores() -> int:
    """How many this process may use: a job scheduler, or taskset, may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return min(os.cpu_count() or 1, 60)  # Windows can wait for 63 processes at a time


if __name__ == "__main__":
    main()
