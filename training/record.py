"""What a run writes: its rows in the loss log and its checkpoint. Only rank 0 writes them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from data import Corpus, LossLog, UserError, has_rows, read_log
from training import ranks
from training.checkpoint import check_folder, checkpoint_path, load_checkpoint, save_checkpoint
from training.config import TrainConfig, changed_flags, config_hash
from training.device import processor
from training.divergence import not_finite
from training.provenance import commit, run_name, rung_code, shared_code
from training.resume import resume, what_differs
from training.state import Evaluation, State

WORTH_KEEPING = 120  # seconds of training; a longer unfinished run is replaced only with the user's consent


def check_outputs(config: TrainConfig) -> None:
    """Raises UserError for a log or a folder that cannot be written to, before training rather than after it."""
    if ranks.rank() == 0:
        LossLog(config.loss_csv).check()
        check_folder(config.runs_dir)


@dataclass
class Record:
    """The record of one run. From `open` to `close` no other process can train the same run."""

    script: Path
    config: TrainConfig
    corpus: Corpus
    parameters: int
    precision: str
    metadata: dict = field(init=False)  # the same in every row of the run; a resumed run keeps its name
    logged: set[int] = field(default_factory=set)  # steps that have a row in the log
    unsaved: UserError | None = None  # why the latest state is not saved, if it is not

    def __post_init__(self):
        rung, device = self.script.stem, self.corpus.train.device
        self.metadata = {
            "run": run_name(rung, self.config.seed),
            "rung": rung,
            "seed": self.config.seed,
            "steps": self.config.steps,
            "parameters": self.parameters,
            "device": device.type,
            "precision": self.precision,
            "corpus": self.corpus.name,
            "corpus_sha256": self.corpus.sha256[:12],
            "config": config_hash(self.config),
            "flags": changed_flags(self.config),
            "rung_code": rung_code(self.script),
            "shared_code": shared_code(),
            "commit": commit(),
            "torch": str(torch.__version__),  # a type of its own, which a checkpoint may not hold
            "processor": processor(device),
            "threads": torch.get_num_threads(),
        }

    def path(self, *, finished: bool) -> Path:
        return checkpoint_path(self.script.stem, self.config, self.corpus.sha256, finished=finished)

    def open(self, state: State) -> None:
        """Lock the run; with --resume, set `state` to where the run was stopped.

        Raises UserError if another process is training it, if there is nothing to resume, or if a new start would lose
        a stopped run.
        """
        self.lock = FileLock(self.path(finished=True).with_suffix(".lock"), timeout=0)
        partial = self.path(finished=False)
        if ranks.rank() == 0:
            try:
                self.lock.acquire()
            except Timeout:
                raise UserError(f"another process is training this run already ({partial.name})") from None
            if not self.config.resume:
                self._refuse_to_lose(partial)
        if self.config.resume:
            path = partial if partial.exists() else self.path(finished=True)
            self._go_on_as(resume(path, state, self.config, self._all_metadata()))
            self._log(state.evaluations)

    def close(self) -> None:
        """Let other processes train this run. The lock file stays, because another process may already wait for it."""
        if ranks.rank() == 0:
            self.lock.release()

    def save_and_log(self, state: State) -> None:
        """Save the evaluated `state`, and log its evaluation. Raises UserError if the log cannot be written.

        The checkpoint comes first: if the process is killed in between, the row is logged when the run is resumed.
        A loss that is not finite is a UserError, and is neither saved nor logged.
        """
        last = state.evaluations[-1]
        if not (math.isfinite(last.train_loss) and math.isfinite(last.val_loss)):
            raise not_finite(last.step)
        self.save(state)
        self._log([last])

    def save(self, state: State) -> None:
        """Write the checkpoint. If that fails, the run warns and goes on; `unsaved` says why."""
        if ranks.rank() > 0:
            return
        finished = state.step == self.config.steps
        try:
            save_checkpoint(self.path(finished=finished), state, self.config, self._all_metadata())
            self.unsaved = None
        except UserError as error:
            self.unsaved = error
            tqdm.write(f"WARNING: {error}", file=sys.stderr)  # on a line of its own, above the bar
        else:
            if finished:
                self.path(finished=False).unlink(missing_ok=True)

    def _refuse_to_lose(self, partial: Path) -> None:
        """Raises UserError if a new start would lose more than two minutes of training."""
        try:
            content = load_checkpoint(partial)
        except UserError:  # there is none that could be resumed
            return
        if content["seconds"] > WORTH_KEEPING:
            same_code = all(content["metadata"][name] == self.metadata[name] for name in ("rung_code", "shared_code"))
            go_on = "add --resume to go on with it, or " if same_code else "it is of other code, and cannot go on; "
            raise UserError(
                f"{partial} holds this run, stopped at step {content['step']:,} after {content['seconds'] / 60:.0f} "
                f"minutes; {go_on}delete that file to start again"
            )

    def _log(self, evaluations: list[Evaluation]) -> None:
        """Add a row for each that has none."""
        if ranks.rank() > 0:
            return
        for evaluation in evaluations:
            if evaluation.step not in self.logged:
                LossLog(self.config.loss_csv).append(
                    self.metadata
                    | {
                        "step": evaluation.step,
                        "train_loss": f"{evaluation.train_loss:.6f}",
                        "val_loss": f"{evaluation.val_loss:.6f}",
                        "tokens": evaluation.step * self.config.batch_size * self.config.block_size,
                        "seconds": f"{evaluation.seconds:.2f}",
                    }
                )
                self.logged.add(evaluation.step)

    def _all_metadata(self) -> dict:
        """The metadata of the rows, and the alphabet."""
        return self.metadata | {"alphabet": "".join(self.corpus.tokenizer.chars)}

    def _go_on_as(self, there: dict) -> None:
        """Take over the name and precision of the run with metadata `there`; warn of what differs."""
        for difference in what_differs(there, self.metadata):
            print(f"WARNING: this run began with {difference}", file=sys.stderr)
        self.metadata["run"] = there["run"]
        self.precision = self.metadata["precision"] = there["precision"]  # not what auto would choose now
        if ranks.rank() == 0 and has_rows(self.config.loss_csv):
            rows = read_log(self.config.loss_csv)
            self.logged = set(rows[rows["run"] == there["run"]]["step"])
