"""The message at the end of a run that overfits: with losses by hand, and in runs on random text."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import gpt
from data import read_log
from stages import residual
from training import console, train_rung
from training.overfitting import lowest_before_overfitting
from training.state import Evaluation

FALLING = [4.0, 2.0, 1.9, 1.8, 1.7]


def evaluations(val_losses: list[float], train_losses: list[float]) -> list[Evaluation]:
    """One every 100 steps."""
    losses = enumerate(zip(train_losses[: len(val_losses)], val_losses, strict=True))
    return [Evaluation(100 * number, train, val, 1.0 * number) for number, (train, val) in losses]


@pytest.mark.parametrize(
    ("val_losses", "train_losses", "lowest"),
    [
        ([4.0, 2.0, 2.1, 2.2], FALLING, 100),
        ([4.0, 2.0, 2.1, 2.2, 2.19], FALLING, 100),  # a little lower again, as the learning rate ends at zero
        ([4.0, 2.0, 2.1, 2.05, 2.06], FALLING, None),  # never two in a row
        ([4.0, 2.0, 2.1, 2.2, 1.9], FALLING, None),  # the end is the best
        ([4.0, 2.0, 2.1, 2.2], [4.0, 2.0, 2.1, 2.2], None),  # both rise: it diverges
        ([4.0, 2.0, 2.1, 2.2], [4.0, 2.0, 2.1, 1.9], None),
        ([4.0, 2.0, 2.00001, 2.00002], FALLING, None),  # as the terminal shows them, they are equal
        ([4.0, 2.0, 2.0001, 2.0002], FALLING, 100),
        ([4.0, 2.0], FALLING, None),
        ([4.0, 4.1], FALLING, 0),  # worse than an untrained model
        ([4.0, 4.1], [4.0, 4.1], None),
    ],
)
def test_a_run_overfits_if_its_loss_rises_twice_while_the_train_loss_falls(val_losses, train_losses, lowest):
    found = lowest_before_overfitting(evaluations(val_losses, train_losses))
    assert (found.step if found else None) == lowest


def test_the_message_names_flags_that_the_run_has(capsys):
    def messages(config, *val_losses: float) -> list[str]:
        state = SimpleNamespace(evaluations=evaluations(list(val_losses), FALLING))
        record = SimpleNamespace(metadata={"run": "x"}, unsaved=None, path=lambda **_: "x.pt")
        console.report("", config, state, record, seconds=60.0)
        printed = capsys.readouterr()
        assert "WARNING" not in printed.err
        return [line for line in printed.out.splitlines() if "overfitting" in line]

    rising = (4.0, 2.0, 2.1, 2.2)
    (line,) = messages(residual.Config(), *rising)
    assert "lowest at step 100, 2.0000" in line and line.endswith("; try fewer --steps")
    (line,) = messages(gpt.Config(dropout=0.1), *rising)
    assert line.endswith("; try fewer --steps, or more --dropout than 0.1")
    (line,) = messages(gpt.Config(minutes=1), *rising)
    assert line.endswith("; try fewer --minutes, or more --dropout than 0.2")
    (line,) = messages(gpt.Config(), 4.0, 5.0)  # it has memorised its text, and not diverged
    assert "lowest at step 0" in line
    assert messages(gpt.Config(), 4.0, 2.0, 1.9, 1.95) == []


@pytest.fixture
def config(tmp_path) -> residual.Config:
    """The settings of a run on a text that can be memorised, but not predicted."""
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh"), size=1200))
    (tmp_path / "noise.txt").write_text(text, encoding="utf-8")
    places = {"corpus": str(tmp_path / "noise.txt"), "loss_csv": tmp_path / "log.csv", "runs_dir": tmp_path}
    return residual.Config(steps=300, eval_interval=50, learning_rate=0.01, sample_length=1, device="cpu", **places)


def test_only_a_finished_run_reports_overfitting_even_if_it_was_stopped_before(config, capsys):
    def stop(done: int) -> None:
        if done == 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_rung(residual.LanguageModel, config, stop)
    assert "overfitting" not in capsys.readouterr().out
    train_rung(residual.LanguageModel, replace(config, resume=True))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "overfitting" in line]
    losses = read_log(config.loss_csv).set_index("step")["val_loss"]
    assert f"lowest at step {losses.idxmin()}, {losses.min():.4f}" in line and losses.idxmin() < 250
