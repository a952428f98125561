"""Where in its context a model loses: each character once, predicted from what the window shows before it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import ROOT
from matplotlib.image import imread

import bigram
import gpt
from data import read_log
from helper_scripts import loss_by_position as command
from helper_scripts.models import latest_checkpoint
from training import run

T = 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text_file):
    """Two rungs after a few steps: one that sees one character, and one with a context, trained with --holdout."""
    folder = tmp_path_factory.mktemp("runs")
    places = ["--corpus", str(text_file), "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder)]
    settings = ["--steps", "2", "--sample-length", "1", "--device", "cpu", *places]
    run(bigram.LanguageModel, bigram.Config, settings)
    sizes = ["--n-embd", "12", "--n-head", "2", "--n-layer", "1", "--block-size", "24", "--batch-size", "2"]
    run(gpt.LanguageModel, gpt.Config, [*settings, *sizes, "--holdout"])
    return folder


def look(runs, monkeypatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["loss_by_position.py", "--device", "cpu", "--runs-dir", str(runs), *flags])
    command.main()


@pytest.mark.parametrize("stride", [1, 3, T])
@pytest.mark.parametrize("length", [T + 1, 5 * T + 1, 5 * T + 4])
@torch.no_grad()
def test_each_character_counts_once_by_what_its_window_shows_before_it(small, length, stride):
    torch.manual_seed(0)
    model = gpt.LanguageModel(11, small(gpt, block_size=T)).double().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    ids = torch.randint(11, (length,), dtype=torch.uint8)
    expected = []
    for place in range(1, length):  # one by one: the first window that has this character among its targets
        window = 0 if place <= T else -(-(place - T) // stride)
        seen = ids[window * stride : place].long()
        expected.append((len(seen), -model(seen[None])[0, -1].log_softmax(-1)[ids[place].long()].item()))
    losses = torch.cat(list(command.losses_of(model, ids, T, stride)))
    found = [(t + 1, loss.item()) for row in losses for t, loss in enumerate(row) if not loss.isnan()]
    assert [seen for seen, _ in found] == [seen for seen, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected])


def test_lines_are_means_and_errors_over_windows():
    losses = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 3.0, 6.0, math.nan], [6.0, 3.0, 6.0, 8.0, math.nan]])
    table = command.by_position(iter([losses[:2].double(), losses[2:].double()]))
    assert table.index.tolist() == [1, 2, 4, 5]
    assert table["loss"].tolist() == [3, 3, 5, 5]
    assert table["characters"].tolist() == [3, 3, 6, 1]
    # of 1, 2, 6: variance 7, over three windows; of 2, 4, 3: variance 1; of 3.5, 4.5, 7: variance 3.25
    errors = [math.sqrt(7 / 3), math.sqrt(1 / 3), math.sqrt(3.25 / 3)]
    assert table["error"].tolist()[:3] == pytest.approx(errors)
    assert math.isnan(table["error"].iloc[3])  # one window tells nothing of others


def test_the_mean_over_positions_is_the_loss_in_the_log(runs, monkeypatch, capsys):
    log = read_log(runs / "log.csv").groupby("rung").last()
    for rung in ("bigram", "gpt"):
        for split in ("val", "train"):
            look(runs, monkeypatch, rung, "--split", split)
            loss = capsys.readouterr().out.partition("after 2 steps: ")[2].split()[0]
            assert float(loss) == pytest.approx(log.loc[rung, f"{split}_loss"], abs=1e-4)


def test_models_stand_side_by_side_in_a_table_and_a_picture(runs, monkeypatch, capsys, tmp_path):
    look(runs, monkeypatch, "gpt", str(latest_checkpoint(runs, "bigram")), "--out", str(tmp_path / "a.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gpt --") and lines[1].startswith("bigram --steps 2, seed 0, ")
    for seen, models in {"1": 2, "2": 2, "3 to 4": 2, "5 to 8": 2, "9 to 16": 1, "17 to 24": 1}.items():
        (line,) = [line.strip() for line in lines if line.strip().startswith(f"{seen} ") and "±" in line]
        assert line.count("±") == models
    picture = imread(tmp_path / "a.png")[..., :3]
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3).round(2)}) > 20
    look(runs, monkeypatch, "bigram", "bigram")  # of one name, and so with numbers
    said = capsys.readouterr().out
    assert "1: bigram --" in said and "2: bigram --" in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--block-size", "25"], "context of 24"),
        (["--block-size", "8", "--stride", "9"], "context of 24"),
        (["--stride", "-1"], "1 or more"),
        (["--corpus", str(ROOT / "LICENSE")], "name the other text with --corpus"),
        (["--out", "a.txt"], "kind of picture"),
    ],
)
def test_what_cannot_be_evaluated_is_named_in_one_line(flags, words, runs, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        look(runs, monkeypatch, "gpt", *flags)
    complaint = capsys.readouterr().err
    assert stop.value.code == 2 and words in complaint and complaint.count("\n") == 1


def test_a_text_that_was_moved_is_named_anew(runs, monkeypatch, capsys, text_file, tmp_path):
    look(runs, monkeypatch, "gpt")
    before = capsys.readouterr().out
    moved = text_file.rename(tmp_path / "moved.txt")
    try:
        with pytest.raises(SystemExit):
            look(runs, monkeypatch, "gpt")
        assert "give --corpus a text file" in capsys.readouterr().err
        look(runs, monkeypatch, "gpt", "--corpus", str(moved))
        assert capsys.readouterr().out == before
    finally:
        moved.rename(text_file)
