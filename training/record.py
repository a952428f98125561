"""What stays of a run: its rows in the loss log and its checkpoint. Rank 0 alone writes them."""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from data import Corpus, LossLog, UserError, has_rows, read_log
from training import ranks
from training.checkpoint import check_folder, checkpoint_path, save_checkpoint
from training.config import TrainConfig, changed_flags, fingerprint
from training.finite import not_finite
from training.provenance import commit, run_name
from training.resume import make_way, resume
from training.state import Evaluation, State

WORTH_KEEPING = 120  # seconds of training; what took longer is not replaced unasked


@dataclass
class Record:
    """Of one run. Its checkpoint is locked from `open` or `planned` on until `close`, so that no other can have it."""

    experiment: str
    config: TrainConfig
    corpus: Corpus
    parameters: int
    precision: str
    run: str = field(init=False)  # its name in the log; a resumed run keeps the one it had
    logged: set[int] = field(default_factory=set)  # steps whose rows the log has
    unsaved: UserError | None = None  # why the latest state is not on disk, if it is not
    lock: FileLock | None = None

    def __post_init__(self):
        self.run = run_name(self.experiment, self.config.seed)
        self.commit = commit()

    @property
    def facts(self) -> dict:
        """What every row of the run says alike."""
        return {
            "run": self.run,
            "experiment": self.experiment,
            "seed": self.config.seed,
            "steps": self.config.steps,
            "parameters": self.parameters,
            "device": self.corpus.train.device.type,
            "precision": self.precision,
            "corpus": self.corpus.name,
            "corpus_sha256": self.corpus.sha256[:12],
            "config": fingerprint(self.config),
            "flags": changed_flags(self.config),
            "commit": self.commit,
            "torch": str(torch.__version__),  # which is a type of its own, that a checkpoint may not hold
        }

    @property
    def checkpoint(self) -> Path:
        return checkpoint_path(self.experiment, self.config, self.corpus.sha256)

    def open(self, state: State) -> None:
        """Put `state` where the run was stopped, if it is to be resumed. Raises UserError for all that is in the way.

        That may be a log or a folder that cannot be written to, no checkpoint or another run's, an unfinished one that
        would be lost, or one that another process is at.
        """
        if ranks.rank() == 0:
            LossLog(self.config.loss_csv).check()
            check_folder(self.config.runs_dir)
        if not self.config.minutes:  # whose steps, and so whose checkpoint, are not known yet
            self._claim()
        if self.config.resume:
            self._go_on(resume(self.checkpoint, state, self.config, self._all_facts()))
            self._log(state.evaluations)

    def planned(self, config: TrainConfig) -> None:
        """`config` is now what will be done. Raises UserError as `open` does."""
        self.config = config
        if self.lock is None:
            self._claim()

    def close(self) -> None:
        """Let others have the checkpoint."""
        if self.lock is not None and ranks.rank() == 0:
            with contextlib.suppress(OSError):  # while it is held, lest another's be taken away; Windows does it itself
                Path(self.lock.lock_file).unlink()
            self.lock.release()

    def keep(self, state: State) -> None:
        """Save `state`, just evaluated, and log its evaluation. Raises UserError where the log cannot be written.

        The checkpoint comes first: of a run killed between the two, the row is logged when it is resumed. Losses that
        are not finite are kept in neither, and raised as UserError too.
        """
        last = state.evaluations[-1]
        if not (math.isfinite(last.train_loss) and math.isfinite(last.val_loss)):
            raise not_finite(last.step)
        self.save(state)
        self._log([last])

    def save(self, state: State) -> None:
        """Write the checkpoint. Where that fails it is told, and the run goes on: `unsaved` says why."""
        if ranks.rank() > 0:
            return
        try:
            save_checkpoint(self.checkpoint, state, self.config, self._all_facts())
            self.unsaved = None
        except UserError as error:
            self.unsaved = error
            print(f"WARNING: {error}", file=sys.stderr)

    def _claim(self) -> None:
        lock = FileLock(self.checkpoint.with_name(self.checkpoint.name + ".lock"), timeout=0)
        if ranks.rank() == 0:
            try:
                lock.acquire()
            except Timeout:
                raise UserError(f"another process is training this very run ({self.checkpoint.name})") from None
        self.lock = lock
        if ranks.rank() == 0 and not self.config.resume:
            make_way(self.checkpoint, WORTH_KEEPING)

    def _log(self, evaluations: list[Evaluation]) -> None:
        """Add a row for each that has none."""
        if ranks.rank() > 0:
            return
        for evaluation in evaluations:
            if evaluation.step in self.logged:
                continue
            LossLog(self.config.loss_csv).append(
                self.facts
                | {
                    "step": evaluation.step,
                    "train_loss": f"{evaluation.train_loss:.6f}",
                    "val_loss": f"{evaluation.val_loss:.6f}",
                    "tokens": evaluation.step * self.config.batch_size * self.config.block_size,
                    "seconds": f"{evaluation.seconds:.2f}",
                }
            )
            self.logged.add(evaluation.step)

    def _all_facts(self) -> dict:
        """Those of the rows, and what else tells whether a checkpoint may be gone on from."""
        more = {"alphabet": "".join(self.corpus.tokenizer.chars), "threads": torch.get_num_threads()}
        return self.facts | more

    def _go_on(self, facts: dict) -> None:
        """As the run that `facts` are of. What differs now, but may, is told."""
        self.run = facts["run"]
        here = self._all_facts()
        if self.config.precision == "auto" and facts["device"] == here["device"]:
            self.precision = here["precision"] = facts["precision"]  # whichever would be faster today
        for name in ("commit", "torch", "device", "precision", "threads"):
            if facts[name] != here[name]:
                print(
                    f"WARNING: this run began with {name} {facts[name]}, and goes on with {here[name]}", file=sys.stderr
                )
        if (facts["commit"], facts["torch"]) != (here["commit"], here["torch"]):
            self.commit = facts["commit"].rstrip("+") + "+"  # no code alone has trained it
        if ranks.rank() == 0 and has_rows(self.config.loss_csv):
            rows = read_log(self.config.loss_csv)
            self.logged = set(rows[rows["run"] == self.run]["step"])
