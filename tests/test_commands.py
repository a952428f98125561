"""The documentation's commands run, a run writes what it should, and the documentation matches the code.

Other tests check what each command computes. Here each command is shortened and run from another folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import MODULES, ROOT, rung_id, runs

import gpt
from data import LOSS_CSV, load_corpus, read_log
from data.loss_log import COLUMNS
from helper_scripts import benchmark, controls, ladder_table, workers
from helper_scripts.models import RUNGS, rung_module
from training import ScaledConfig, run, train_rung
from training.checkpoint import load_checkpoint
from training.config import RUNS_DIR
from training.presets import PRESETS

HELPERS = [
    importlib.import_module(f"helper_scripts.{path.stem}")
    for path in sorted((ROOT / "helper_scripts").glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]
PAGES = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
README, RUNNING, RESULTS, CONTRIBUTING = (
    PAGES[ROOT / name] for name in ("README.md", "docs/running.md", "docs/results.md", "CONTRIBUTING.md")
)


@pytest.fixture(autouse=True)
def time_two_steps(monkeypatch):
    """Two steps are timed before a run, however fast they are."""
    monkeypatch.setattr("training.throughput.TRIAL_SECONDS", 0)


def start(command: list[str], cwd: Path, **streams) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, encoding="utf-8", **(streams or {"capture_output": True}))


def places(folder: Path) -> list[str]:
    """Flags for a run on the CPU that writes all its files to `folder`."""
    return ["--device", "cpu", "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]


def small_sizes(rung: str) -> list[str]:
    """Flags with which a large rung takes milliseconds. Its channels are divisible by the heads of every preset."""
    large = issubclass(rung_module(rung).Config, ScaledConfig)
    return ["--n-embd", "120", "--n-layer", "1", "--block-size", "8", "--batch-size", "2"] * large


def train_here(rung: str, folder: Path, text_file: Path, *flags: str) -> None:
    """Trains a rung for two small steps in this process."""
    module = rung_module(rung)
    common = ["--steps", "2", "--sample-length", "9", "--corpus", str(text_file), *small_sizes(rung), *places(folder)]
    run(module.LanguageModel, module.Config, [*common, *flags])


# The commands


def commands() -> list[str]:
    """The commands that start a file of the project, from code blocks and from the text, each once."""
    found = []
    for page in (README, RUNNING):
        blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
        found += [part for block in blocks for line in block.splitlines() for part in line.split("#")[0].split("&&")]
        found += re.findall(r"`([^`]+)`", re.sub("```.*?```", "", page, flags=re.DOTALL))
    found = [" ".join(command.split()) for command in found]
    found = [command for command in found if command.startswith(("python ", "torchrun "))]
    return list(dict.fromkeys(command for command in found if not re.search("RUNG|venv|gelu", command)))


def script(command: str) -> Path:
    name = next(word for word in command.split()[1:] if not word.startswith("-"))
    return ROOT / (name if name.endswith(".py") else f"{name.replace('.', '/')}.py")


def kind(command: str) -> tuple:
    """One command of each kind is run in its own process. All rungs are one kind, because their imports are alike."""
    path = script(command)
    return command.split()[0], " -m " in command, path if path.parent.name == "helper_scripts" else "rung"


COMMANDS = commands()
FIRST = {kind(command): command for command in reversed(COMMANDS) if "run_ladder" not in command}.values()


def shortened(command: str, folder: Path, text_file: Path, results_csv: Path, models: Path) -> list[str]:
    """The command's arguments, changed to a small text and a few steps, and to write to `folder` alone."""
    words, name = shlex.split(command), script(command).stem
    first = next(i for i, word in enumerate(words) if i and not word.startswith("-")) + 1
    words = [str(text_file) if word == "my_text.txt" else word for word in words[first:]]
    corpus = ["--corpus", str(text_file)] * ("--corpus" not in words)
    if name in RUNGS:  # if a flag is given twice, the last one counts
        words += ["--steps", "2", "--sample-length", "9", *corpus, *small_sizes(name), *places(folder)]
        return words + ["--minutes", "0"] * ("--minutes" in words)
    if name == "run_ladder":
        words = ["1" if word == "5" else word for word in words]  # seeds
        words = ["gpt", "previous_token"] * ("--preset" in words) + words
        return [*words, *corpus, "--steps", "2", *places(folder), "--out", str(folder / "curves.png")]
    if name == "benchmark":  # a full-size step of the plain reference would take as long as all the other commands
        return [*words, "bigram", *corpus, "--seconds", "0.01", "--rounds", "0", "--text-mb", "1", "--device", "cpu"]
    if name == "sample":
        return [*words, "--runs-dir", str(models), "--device", "cpu", "--length", "9"]
    if name == "shapes":
        return [*words, *corpus, "--device", "cpu"]
    if name == "mixture":
        return [*words, "--runs-dir", str(models), "--device", "cpu"]
    if name == "export":
        return [*words, "--runs-dir", str(models)]
    if name == "results_page":  # test_results_page.py tests --write
        return ["--loss-csv", str(results_csv)]
    assert name in ("plot_loss", "ladder_table", "compare", "controls", "results_page") and "--write" not in words
    picture = ["--out", str(folder / "curves.png")] * (name == "plot_loss" and "--out" not in words)
    return [*words, "--loss-csv", str(results_csv), *picture]


@pytest.fixture(scope="module")
def results_csv(tmp_path_factory) -> Path:
    """A log with finished runs of everything that the commands show."""
    labels = {"gpt --preset laptop", "rotary --preset laptop", *sum(controls.TABLES.values(), ())}
    rows = [row for label in sorted(labels) for row in runs(label, 2.0, 2.1, 2.3)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(path, index=False, lineterminator="\n")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory, text_file) -> Path:
    """A folder with a checkpoint of gpt and one of modern."""
    folder = tmp_path_factory.mktemp("models")
    for rung in ("gpt", "modern"):
        train_here(rung, folder, text_file)
    return folder / "runs"


def written_here(text_file: Path) -> list:
    """The parts of the project that a command on that text could change. Other runs at the same time do not count."""
    pictures = [(path, path.stat().st_mtime_ns) for path in (ROOT / "images").iterdir()]
    digits = load_corpus(str(text_file)).sha256[:6]
    logged = f"{text_file.name} ({digits})" in LOSS_CSV.read_text(encoding="utf-8")
    return [(ROOT / "README.md").read_bytes(), pictures, logged, list(RUNS_DIR.glob(f"*-{digits}-*"))]


@pytest.mark.parametrize("command", [each for each in COMMANDS if script(each).stem != "page"])  # test_page.py tests it
def test_a_command_runs_from_another_folder(command, tmp_path, text_file, results_csv, models, monkeypatch, capsys):
    path, before = script(command), written_here(text_file)
    words = shortened(command, tmp_path, text_file, results_csv, models)
    rung = rung_module(path.stem) if path.stem in RUNGS else None
    if "--resume" in words:  # there has to be something to resume
        run(rung.LanguageModel, rung.Config, [word for word in words if word != "--resume"])
    capsys.readouterr()
    if command in FIRST:  # the others run in this process: importing torch takes seconds
        how = command.split()[1:3] if " -m " in command else [str(path)]
        if command.startswith("torchrun"):
            how = ["-m", "torch.distributed.run", "--standalone", command.split()[1], str(path)]
        done = start([sys.executable, *how, *words], tmp_path)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        monkeypatch.setattr(workers, "train_all", train_all_here)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(path.parent)  # as Python does
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out
    assert printed.strip()
    if rung or path.stem == "run_ladder":
        last = read_log(tmp_path / "log.csv").iloc[-1]
        assert last["step"] == 2 and (not rung or last["rung"] == path.stem)
        assert all(flag in last["flags"] for flag in re.findall("--preset [a-z]+|--holdout", command))
    if path.stem in ("plot_loss", "run_ladder"):
        assert [file.stat().st_size > 10_000 for file in tmp_path.glob("curves.*")] == [True]
    assert written_here(text_file) == before


def train_all_here(planned, jobs, progress, finished):
    """Replaces the workers, whose processes take seconds to start (test_run_ladder.py tests them)."""
    for each in planned:
        last = train_rung(rung_module(each.rung).LanguageModel, each.config)
        finished(each, workers.Result(last.val_loss))


def test_the_documentation_names_every_command():
    others = re.findall(r"python [\w/]+\.py", RESULTS + CONTRIBUTING)
    named = {script(command) for command in [*COMMANDS, *others]}
    assert named >= {ROOT / "bigram.py", ROOT / "gpt.py", ROOT / "stages" / "residual.py"}
    assert len(HELPERS) >= 7 and named >= {Path(module.__file__) for module in HELPERS}


@pytest.mark.parametrize("module", [gpt, *HELPERS], ids=rung_id)
def test_help_has_a_line_for_every_flag_with_its_default(module, capsys, monkeypatch):
    main, options = (
        (partial(run, gpt.LanguageModel, gpt.Config), gpt.Config) if module is gpt else (module.main, module.Options)
    )
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
    assert " ".join(module.__doc__.split("\n\n")[0].split()) in printed
    names = [field.name for field in dataclasses.fields(options) if "Positional" not in str(field.type)]
    flags = ["--" + name.replace("_", "-") for name in names]
    parts = re.split(rf"(?=(?:{'|'.join(flags)})(?:,| [A-Z{{\[]))", printed)  # one for each flag
    for flag in flags:
        own = [part for part in parts if re.match(rf"{flag}[, ]", part)]
        assert any(re.search(r" \w+ \w+.*\((default: |required)", part) for part in own), flag


def test_a_table_can_be_printed_on_an_ascii_console(results_csv, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(sys, "argv", ["ladder_table.py", "--loss-csv", str(results_csv)])
    ladder_table.main()
    console.flush()
    assert b"**2.133** ? 0.153 (n = 3)" in console.buffer.getvalue()


@pytest.mark.skipif(os.name != "posix", reason="Windows has another error for it")
def test_a_closed_pipe_ends_a_command_silently(results_csv, monkeypatch):
    """As in `compare.py | head -1`."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, str(ROOT / "helper_scripts" / "compare.py"), "--loss-csv", str(results_csv)]
    done = start(command, ROOT, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_benchmark_compares_rung_8_with_the_plain_reference(text_file, command, monkeypatch):
    tiny = {"n_embd": 12, "n_head": 2, "n_layer": 1, "block_size": 8, "batch_size": 4}
    monkeypatch.setitem(PRESETS, "lecture", tiny)
    monkeypatch.setattr(benchmark, "_measure", lambda *args: {})  # the table of the rungs, at their own sizes
    monkeypatch.setattr(benchmark, "_matmul_rate", lambda *args: 1e9)
    monkeypatch.setattr(benchmark, "_tokenizer", lambda *args: "")
    sampling = benchmark._sampling
    monkeypatch.setattr(benchmark, "_sampling", lambda *args: sampling(*args[:2], gpt.Config(**tiny)))
    flags = ["gpt", "--rounds", "1", "--device", "cpu", "--corpus", text_file]
    printed = [line.split() for line in command(benchmark, *flags).splitlines()]
    (reference,) = (words for words in printed if words[:1] == ["reference"])
    (ours,) = (words for words in printed if words[:1] == ["gpt"])
    assert (reference[1], ours[1]) == ("fp32", "fp32")
    steps = [float(reference[2]), float(ours[2])]
    assert float(reference[-1]) == 1 and float(ours[-1]) == pytest.approx(steps[0] / steps[1], rel=2e-3, abs=0.006)
    assert any(words[:3] == ["sampling", "16", "characters"] for words in printed)


# A run


def test_a_run_prints_logs_saves_and_samples(tmp_path, text_file):
    flags = ["--seed", "3", "--steps", "4", "--eval-interval", "2", "--sample-length", "200", "--prompt", "to be"]
    command = [sys.executable, str(ROOT / "stages" / "residual.py"), *flags, "--corpus", str(text_file)]
    done = start([*command, *places(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    log = read_log(tmp_path / "log.csv")
    assert log["step"].tolist() == [0, 2, 4]
    assert log["tokens"].tolist() == [0, 2 * 32 * 8, 4 * 32 * 8]
    last, corpus = log.iloc[-1], load_corpus(str(text_file))
    assert (last["rung"], last["seed"], last["steps"], last["flags"]) == ("residual", 3, 4, "--steps 4")
    assert (last["corpus"], last["corpus_sha256"]) == (f"words.txt ({corpus.sha256[:6]})", corpus.sha256[:12])
    (checkpoint,) = (tmp_path / "runs").glob("*.pt")
    for words in (
        f"residual: {last['parameters']:,} parameters, fp32 on cpu",
        "seed 3\n",
        f"corpus {last['corpus']}, sha256 {last['corpus_sha256']}: {len(corpus.train):,} characters to train on, "
        f"{len(corpus.val):,} to validate on, {corpus.tokenizer.vocab_size} distinct\n",
        "\n4 steps of 32 x 8 characters",
        "\n\nto be",
        f"\nvalidation loss {last['val_loss']:.4f} after ",
        f"\nlogged in {tmp_path / 'log.csv'} as {last['run']}\n",
        f"\nmodel saved as {checkpoint}\n",
    ):
        assert words in done.stdout, words
    shown = re.findall(r"^step +(\d+)  train ([\d.]+)  val ([\d.]+)$", done.stdout, flags=re.MULTILINE)
    logged = log[["step", "train_loss", "val_loss"]].to_numpy()
    assert [[float(number) for number in row] for row in shown] == [pytest.approx(row, abs=1e-4) for row in logged]
    assert len(done.stdout.partition("\n\nto be")[2].rpartition("\n\nvalidation loss")[0]) > 150
    assert "4/4" in done.stderr  # the progress bar
    saved = load_checkpoint(checkpoint)
    assert (saved["config"]["seed"], saved["step"]) == (3, 4)
    assert all(saved["metadata"][name] == last[name] for name in saved["metadata"].keys() & COLUMNS.keys())


@pytest.mark.parametrize("rung", ["residual", "gpt", "modern"])
def test_a_rerun_has_the_same_losses_and_another_seed_or_setting_has_others(rung, tmp_path, text_file):
    for flags in (["--seed", "5"], ["--seed", "5"], ["--seed", "6"], ["--seed", "5", "--learning-rate", "0.01"]):
        train_here(rung, tmp_path, text_file, "--eval-interval", "1", *flags)
    log = read_log(tmp_path / "log.csv")
    one, again, *others = [rows["val_loss"].tolist() for _, rows in log.groupby("run", sort=False)]
    assert one == again and len(one) == 3
    assert len({losses[-1] for losses in (one, *others)}) == 3
    assert len(list((tmp_path / "runs").glob("*.pt"))) == 3  # a model with other settings has its own file


def test_a_model_of_another_text_has_its_own_file(tmp_path, text_file):
    for corpus in (text_file, ROOT / "LICENSE"):
        train_here("bigram", tmp_path, corpus)
    assert len(list((tmp_path / "runs").glob("*.pt"))) == 2


# The documentation


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_have_targets(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub("```.*?```", "", PAGES[page], flags=re.DOTALL)):
        if not link.startswith(("https://", "http://")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)$", PAGES.get(target.resolve(), ""), flags=re.MULTILINE) if anchor else []
            assert not anchor or anchor in {
                re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings
            }


def test_flags_in_the_documentation_exist():
    types = {*(module.Config for module in MODULES), *(module.Options for module in HELPERS)}
    known = {f"--{field.name.replace('_', '-')}" for each in types for field in dataclasses.fields(each)}
    known |= {flag.replace("--", "--no-", 1) for flag in known} | {"--help"}
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-endpoint", "--no-index", "--extra-index-url"}  # of other programs
    known |= {"--headless", "--hide-scrollbars", "--window-size", "--force-device-scale-factor", "--screenshot"}
    known |= {"--virtual-time-budget"}
    for page in (README, RUNNING):
        text = re.sub("table: begin -->.*?<!--", "", page, flags=re.DOTALL)
        assert not set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known


def test_the_table_of_presets_matches_the_code():
    rows = [line.strip("| ").split(" | ") for line in RUNNING.splitlines() if re.match(r"\| `--[\w-]+` ", line)]
    assert len(rows) >= max(map(len, PRESETS.values()))
    for name, *values in rows:
        for preset, value in zip((None, *PRESETS), values, strict=True):
            there = getattr(gpt.Config.from_preset(preset), name.strip("`").removeprefix("--").replace("-", "_"))
            assert value.replace(",", "") == (there if isinstance(there, str) else f"{there:g}"), name
