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
from helper_scripts.plot_loss import IMAGE, write_plot
from helper_scripts.results import RUNGS, load_results
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
    corpus: str = "auto"  # as for a rung: a text file, auto or pydoc
    loss_csv: Path = LOSS_CSV  # the log that the runs join
    runs_dir: Path = RUNS_DIR  # where the finished models go
    out: Path = IMAGE  # the picture to draw afterwards


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        unknown = [name for name in options.rungs if name not in RUNGS]
        if unknown:
            raise UserError(f"there is no rung {', '.join(unknown)}; the ladder has {', '.join(RUNGS)}")
        if options.jobs < 0:
            raise UserError(f"--jobs is {options.jobs}; it has to be 0 or more")
        failed = train_all(options)
        if len(failed) < len(options.rungs) * len(options.seeds):
            corpus = read_log(options.loss_csv)["corpus"].iloc[-1]  # what the runs just logged were trained on
            results = load_results(options.loss_csv, corpus, variants=options.steps is not None)
            write_plot(results, options.out)
            print(f"\n{markdown_table(results)}")
        if failed:
            raise UserError("; ".join(failed))


def train_all(options: Options) -> list[str]:
    """Train every rung with every seed, each run in a process of its own; a line for each that failed."""
    runs = [(rung, seed) for rung in options.rungs for seed in options.seeds]
    jobs = min(options.jobs or os.cpu_count() or 1, len(runs))
    failed = []
    with (
        ThreadPoolExecutor(max_workers=jobs) as pool,
        tqdm(total=len(runs), desc=f"{len(runs)} runs, {jobs} at a time", unit="run") as bar,
    ):
        pending = {pool.submit(_train, rung, seed, options, jobs): (rung, seed) for rung, seed in runs}
        try:
            for done in as_completed(pending):
                rung, seed = pending[done]
                error, last_words = done.result()
                if error:
                    failed.append(f"{rung} with seed {seed} failed: {error}")
                bar.write(f"{rung}, seed {seed}: {error or last_words}")
                bar.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _train(rung: str, seed: int, options: Options, jobs: int) -> tuple[str, str]:
    """Run a rung's own command. Returns its error line, empty where it went well, and its loss as it put it."""
    command = [sys.executable, "-m", LADDER[RUNGS.index(rung)], "--seed", str(seed), "--corpus", options.corpus]
    command += ["--loss-csv", str(options.loss_csv.resolve()), "--runs-dir", str(options.runs_dir.resolve())]
    if Path(options.corpus).is_file():
        command[command.index("--corpus") + 1] = str(Path(options.corpus).resolve())
    if options.steps is not None:
        command += ["--steps", str(options.steps)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"  # two runs of two threads each would only wait for one another
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1], ""
    return "", next(line for line in done.stdout.splitlines() if line.startswith("validation loss"))


if __name__ == "__main__":
    main()
