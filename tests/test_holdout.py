"""--holdout: settings are chosen without the validation split."""

from __future__ import annotations

import gpt
from data import read_log
from training import run

FLAGS = ["--holdout", "--steps", "4", "--eval-interval", "2", "--n-embd", "12", "--n-layer", "1", "--n-head", "2"]
FLAGS += ["--block-size", "8", "--batch-size", "4", "--sample-length", "1", "--device", "cpu"]


def test_holdout_reads_no_character_of_the_validation_split(text, tmp_path, capsys):
    cut = int(0.9 * len(text))

    def losses(end: int, character: str):
        """Losses of a run on the text with every character from `end` on replaced."""
        path, log = tmp_path / "text.txt", tmp_path / f"{end}{character}.csv"
        path.write_text(text[:end] + character * (len(text) - end), encoding="utf-8")
        places = ["--corpus", str(path), "--loss-csv", str(log), "--runs-dir", str(tmp_path)]
        run(gpt.LanguageModel, gpt.Config, [*FLAGS, *places])
        assert f"{int(0.9 * cut):,} characters to train on" in capsys.readouterr().out
        rows = read_log(log)
        assert all("--holdout" in flags.split() for flags in rows["flags"])
        return rows[["train_loss", "val_loss"]].values.tolist()

    assert losses(cut, "a") == losses(cut, "b") == losses(len(text), "")
    assert losses(cut - 1, "a") != losses(cut, "a")  # the character before the cut is read
