"""Train rungs one after the other, then draw the plot and print the table.

Without names: every rung but gpt, which alone takes an hour. Each runs at its own settings. Runs share the cores, one
thread each: the small rungs are bound by the overhead of calls and gain next to nothing from a second thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from data import LOSS_CSV, UserError, read_log
from helper_scripts.ladder_table import markdown_table
from helper_scripts.plot_loss import IMAGE, check_picture, write_plot
from helper_scripts.results import RUNGS, check_rungs, load_results
from stages import LADDER
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR

SMALL_RUNGS = tuple(rung for rung in RUNGS if rung != "gpt")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    rungs: Annotated[tuple[str, ...], tyro.conf.Positional] = SMALL_RUNGS  # the rungs to train, by name
    seeds: tuple[int, ...] = (0,)  # one run of each rung for each seed
    jobs: int = 0  # runs at a time; 0 is one a core, and a single one has all cores to itself
    steps: int | None = None  # updates, in place of each rung's own number
    device: str = "auto"  # cpu, cuda or mps; auto takes the best that is there
    corpus: str = "auto"  # as for a rung: a text file, auto or pydoc
    loss_csv: Path = LOSS_CSV  # the log that the runs join
    runs_dir: Path = RUNS_DIR  # where the finished models go
    out: Path = IMAGE  # the picture to draw afterwards


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        check_rungs(options.rungs)
        if options.jobs < 0:
            raise UserError(f"--jobs is {options.jobs}; it has to be 0 or more")
        check_picture(options.out)
        logged, failed = train_all(options)
        if logged:
            rows = read_log(options.loss_csv)
            corpus = rows[rows["run"].isin(logged)]["corpus"].iloc[-1]
            results = load_results(options.loss_csv, corpus, variants=options.steps is not None)
            write_plot(results, options.out)
            print(f"\n{markdown_table(results)}")
        if failed:
            raise UserError("; ".join(failed))


def train_all(options: Options) -> tuple[list[str], list[str]]:
    """Train every rung with every seed, each run in a process of its own.

    Returns the names under which runs were logged, and a line for each run that failed.
    """
    runs = [(rung, seed) for rung in options.rungs for seed in options.seeds]
    jobs = min(options.jobs or os.cpu_count() or 1, len(runs))
    logged, failed = [], []
    with (
        ThreadPoolExecutor(max_workers=jobs) as pool,
        tqdm(total=len(runs), desc=f"{len(runs)} runs, {jobs} at a time", unit="run") as bar,
    ):
        pending = {pool.submit(_train, rung, seed, options, jobs): (rung, seed) for rung, seed in runs}
        try:
            for done in as_completed(pending):
                rung, seed = pending[done]
                error, loss, run = done.result()
                if error:
                    failed.append(f"{rung} with seed {seed} failed: {error}")
                else:
                    logged.append(run)
                bar.write(f"{rung}, seed {seed}: {error or loss}")
                bar.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return logged, failed


def _train(rung: str, seed: int, options: Options, jobs: int) -> tuple[str, str, str]:
    """Run a rung's own command. Returns its error line, empty where it went well; its loss as it put it; its name."""
    corpus = options.corpus
    if corpus not in ("auto", "pydoc"):
        corpus = str(Path(corpus).resolve())  # for the command starts in another folder
    command = [sys.executable, "-m", LADDER[RUNGS.index(rung)], "--seed", str(seed), "--corpus", corpus]
    command += ["--loss-csv", str(options.loss_csv.resolve()), "--runs-dir", str(options.runs_dir.resolve())]
    command += ["--device", options.device]
    if options.steps is not None:
        command += ["--steps", str(options.steps)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"  # two runs of two threads each would only wait for one another
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1], "", ""
    loss, place = done.stdout.splitlines()[-2:]  # "validation loss ...", "logged in FILE as RUN; model saved ..."
    return "", loss, place.rpartition(";")[0].rpartition(" ")[2]


if __name__ == "__main__":
    main()
