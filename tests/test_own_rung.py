"""CONTRIBUTING.md's steps to add a rung and compare it, in a copy of the project."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from data import read_log

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ADD_A_RUNG = CONTRIBUTING.partition("## Add a rung\n")[2].partition("\n## ")[0]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of all files of the project that git tracks or would track."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def start(words: list[str], copy: Path, text_file: Path) -> subprocess.CompletedProcess:
    """Runs one of the commands for a few steps on a small text; it writes beside `copy`."""
    name, folder = Path(words[1]).stem, copy.parent
    corpus, log = ["--corpus", str(text_file)], ["--loss-csv", str(folder / "log.csv")]
    training = ["--steps", "4", *corpus, "--device", "cpu", *log, "--runs-dir", str(folder / "runs")]
    if words[0] == "pytest":  # with it a test that counts the rungs
        words = ["-m", *(f"{word} or preset_has_its_rungs" if word == "gelu" else word for word in words)]
        words += ["tests/test_run_ladder.py", "-n0", "-p", "no:cacheprovider"]
    elif name == "compare":
        words = [words[1], *(f"{rung} --steps 4" for rung in words[2:]), *log, "--corpus", text_file.name]
    elif name == "shapes":
        words = [*words[1:], *corpus]
    elif name == "run_ladder":
        words = ["2" if word == "5" else word for word in words[1:]] + [*training, "--out", str(folder / "curves.svg")]
    else:
        words = [*words[1:], *training]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, encoding="utf-8")


def test_a_rung_can_be_added_and_compared(copy, tmp_path, text_file):
    printed = {}
    for kind, block in re.findall(r"```(bash|diff)\n(.*?)```", ADD_A_RUNG, flags=re.DOTALL):
        if kind == "diff":
            (tmp_path / "change.diff").write_text(block, encoding="utf-8", newline="\n")
            subprocess.run(["git", "apply", "--unidiff-zero", str(tmp_path / "change.diff")], cwd=copy, check=True)
            continue
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "cp":
                shutil.copy(copy / words[1], copy / words[2])
                continue
            done = start(words, copy, text_file)
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            printed[Path(words[1]).stem if words[0] == "python" else words[0]] = done.stdout

    assert set(printed) == {"shapes", "pytest", "run_ladder", "compare"}
    assert "GELU" in printed["shapes"]
    assert int(re.search(r"(\d+) passed", printed["pytest"])[1]) >= 5 and "failed" not in printed["pytest"]
    rows = [line for line in printed["run_ladder"].splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == ["pre_norm --steps 4", "gelu --steps 4"]
    assert "| a ReLU without the corner" in rows[1] and "(n = 2)" in rows[1]
    assert "drew 4 runs of 2 rungs" in printed["run_ladder"]
    assert "gelu --steps 4" in printed["compare"] and "n = 2 seeds" in printed["compare"]
    losses = read_log(tmp_path / "log.csv").groupby("rung")["val_loss"].last()
    assert losses["gelu"] != losses["pre_norm"]  # the change has an effect
