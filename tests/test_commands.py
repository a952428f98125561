"""The commands as a user types them, most of them in a process of their own and from a foreign folder."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from conftest import MODULES, ROOT, rung_id
from matplotlib.figure import Figure

from data import LOSS_CSV, read_log
from data.loss_log import COLUMNS
from helper_scripts import benchmark, controls, equal, ladder_table, loss_by_position, plot_loss, run_ladder
from helper_scripts.results import RUNGS, load_results
from training import run
from training.checkpoint import load_checkpoint

README = (ROOT / "README.md").read_text(encoding="utf-8")


def start(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8")


def outputs(folder: Path) -> list[str]:
    """Flags that send all that a run writes into `folder`, and keep it on the device that all machines have."""
    return ["--device", "cpu", "--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / "runs")]


def train_here(module, folder: Path, text_file: Path, *flags: str) -> None:
    """A run of a few small steps in this process."""
    args = ["--steps", "2", "--eval-interval", "1", "--sample-length", "20", "--corpus", str(text_file)]
    run(module.LanguageModel, module.Config, [*args, *small_sizes(rung_id(module)), *outputs(folder), *flags])


def small_sizes(rung: str) -> list[str]:
    """Flags that make a large rung take milliseconds, in a width that the heads of any recipe can share."""
    module = MODULES[RUNGS.index(rung)]
    if module.Config().block_size == 8:
        return []
    return ["--n-embd", "120", "--n-layer", "1", "--block-size", "8", "--batch-size", "2"]


# README


def readme_commands() -> list[str]:
    before, _, after = README.partition("## Add a rung of your own")  # whose commands need a rung that is not there
    blocks = re.findall(r"```bash\n(.*?)```", before + after.partition("\n## ")[2], flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines if line for part in line.split("&&")]
    return list(dict.fromkeys(part for part in parts if part.startswith(("python ", "torchrun "))))


def is_first_of_its_file(command: str) -> bool:
    words = command.split()
    return next(other for other in readme_commands() if other.split()[:2] == words[:2]) == command


def shortened(command: str, folder: Path, text_file: Path) -> list[str]:
    """README's command on a small text for a few steps, writing into `folder` alone, from wherever it is started."""
    words = shlex.split(command)
    several = [words.pop(1), "--standalone"] if words[0] == "torchrun" else []
    words[0] = sys.executable
    words = [str(ROOT / word) if word.endswith((".py", ".csv")) else word for word in words]
    name = words[2].rpartition(".")[2] if words[1] == "-m" else Path(words[1]).stem
    words = [str(text_file) if word == "my_text.txt" else word for word in words]
    corpus = [] if "--corpus" in words else ["--corpus", str(text_file)]
    if name in RUNGS:
        words += ["--steps", "2"] + ["--minutes", "0"] * ("--minutes" in words)  # the last one given counts
        words += [*corpus, "--sample-length", "9", *small_sizes(name), *outputs(folder)]
    elif name == "run_ladder":
        words = ["1" if word == "5" else word for word in words]  # seeds
        words += [*corpus, "--steps", "2", *outputs(folder), "--out", str(folder / "curves.png")]
        words += [] if is_first_of_its_file(command) else ["--jobs", "1"]  # every process takes seconds to start
    elif name == "plot_loss":
        words += ["--out", str(folder / "curves.png")]  # the last one given counts
    elif name == "sample":
        words += ["--runs-dir", str(folder / "runs"), "--device", "cpu", "--length", "9", "--prompt", "to be"]
    elif name == "loss_by_position":
        words += ["--runs-dir", str(folder / "runs"), "--device", "cpu", "--out", str(folder / "positions.png")]
        words = [word for word in words if word not in RUNGS] + ["gpt"]  # which has a checkpoint here,
        words = ["1" if word == "64" else word for word in words]  # and a context of 8
    elif name == "benchmark":
        words += [*corpus, "--seconds", "0.01", "--text-mb", "1", "--device", "cpu"]
        words += [] if set(words) & set(RUNGS) else ["bigram"]
        words += ["--rounds", "0"]  # a step of the plain reference takes as long as all else here
    elif name == "compare":
        pass  # it only reads
    elif name in ("ladder_table", "controls", "equal"):
        shutil.copy(ROOT / "README.md", folder / "README.md")
    else:
        raise ValueError(f"nothing here keeps {command} from writing into the project")
    return [words[0], "-m", "torch.distributed.run", *several, *words[1:]] if several else words


def test_readme_names_the_main_commands():
    commands = " ".join(readme_commands())
    for name in ("gpt.py", "bigram.py", "stages/residual.py", "plot_loss.py", "run_ladder.py", "benchmark.py"):
        assert name in commands


@pytest.mark.parametrize("command", readme_commands())
def test_readmes_command_runs_from_a_foreign_folder(command, tmp_path, text_file, monkeypatch, capsys):
    words = shortened(command, tmp_path, text_file)
    before = read_log(LOSS_CSV)
    if "--resume" in words:  # there has to be something to resume
        start([word for word in words if word != "--resume"], tmp_path)
    if "sample.py" in command or "loss_by_position.py" in command:  # and something to sample from, or to read with
        train_here(MODULES[RUNGS.index("gpt")], tmp_path, text_file)
    capsys.readouterr()
    if is_first_of_its_file(command):  # as it is typed; torch alone takes seconds to load
        done = start(words, tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        said = capsys.readouterr().out
    assert said.strip()
    pd.testing.assert_frame_equal(before, read_log(LOSS_CSV).iloc[: len(before)])


# A run


def test_a_run_tells_logs_saves_and_samples(tmp_path, text_file):
    command = [
        sys.executable,
        str(ROOT / "stages" / "residual.py"),
        "--seed",
        "3",
        "--steps",
        "4",
        "--eval-interval",
        "2",
    ]
    command += ["--corpus", str(text_file), "--sample-length", "200", "--prompt", "to be", *outputs(tmp_path)]
    done = start(command, tmp_path)
    assert done.returncode == 0, done.stderr
    log = read_log(tmp_path / "log.csv")
    assert log["step"].tolist() == [0, 2, 4]
    assert log["tokens"].tolist() == [0, 2 * 32 * 8, 4 * 32 * 8]
    last = log.iloc[-1]
    assert (last["experiment"], last["seed"], last["corpus"], last["steps"]) == ("residual", 3, "words.txt", 4)
    assert last["flags"] == "--steps 4"
    (checkpoint,) = (tmp_path / "runs").iterdir()
    said = " ".join(done.stdout.split())
    for words in (
        "residual",
        f"{last['parameters']:,} parameters",
        "fp32 on cpu",
        "seed 3",
        f"corpus words.txt, sha256 {last['corpus_sha256']}",
        "4 steps of 32 x 8 characters",
        f"val {last['val_loss']:.4f}",
        f"logged in {tmp_path / 'log.csv'} as {last['run']}",
        f"model saved as {checkpoint}",
        "\n\nto be",
    ):
        assert words in said or words in done.stdout, words
    assert "4/4" in done.stderr  # the progress bar
    saved = load_checkpoint(checkpoint)
    assert (saved["config"]["seed"], saved["facts"]["run"]) == (3, last["run"])
    assert saved["facts"]["torch"] == last["torch"]


def test_python_m_works_as_well(tmp_path, text_file):
    command = [sys.executable, "-m", "stages.residual", "--steps", "1", "--corpus", str(text_file), *outputs(tmp_path)]
    assert start(command, tmp_path).returncode == 0
    assert read_log(tmp_path / "log.csv")["experiment"].unique().tolist() == ["residual"]


def test_a_rerun_repeats_itself_and_another_seed_does_not(rung, tmp_path, text_file):
    for seed in ("5", "5", "6"):
        train_here(rung, tmp_path, text_file, "--seed", seed)
    log = read_log(tmp_path / "log.csv")
    one, again, other = [rows["val_loss"].tolist() for _, rows in log.groupby("run", sort=False)]
    assert one == again
    assert one != other
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_other_settings_do_not_overwrite_a_model(tmp_path, text_file):
    train_here(MODULES[0], tmp_path, text_file)
    train_here(MODULES[0], tmp_path, text_file, "--steps", "3")
    train_here(MODULES[0], tmp_path, text_file, "--corpus", "pydoc")
    assert len(list((tmp_path / "runs").iterdir())) == 3


COMMANDS = [*MODULES, plot_loss, ladder_table, run_ladder, benchmark, loss_by_position]


@pytest.mark.parametrize("module", COMMANDS, ids=rung_id)
def test_help_has_a_line_for_every_flag_with_its_default(module, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = getattr(module, "Config", None) or module.Options
    with pytest.raises(SystemExit) as stop:
        if hasattr(module, "Config"):
            run(module.LanguageModel, module.Config, ["--help"])
        else:
            monkeypatch.setattr(sys, "argv", [module.__name__, "--help"])
            module.main()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    options = " ".join(re.sub("[│╭╰─╮╯]", " ", said).split())
    assert (module.__doc__ or "").split()[0] in said
    for name in (field.name for field in dataclasses.fields(config)):
        if name in ("rungs", "models"):  # the names themselves, without a flag
            continue
        flag = "--" + name.replace("_", "-")
        assert re.search(rf"{flag}\b[^(]*? \w+ \w+.*?\(default: ", options), flag


# Bad input


BAD = [
    (["--steps", "-1"], "--steps is -1"),
    (["--steps", "many"], "--steps"),
    (["--batch-size", "0"], "--batch-size is 0"),
    (["--n-embd", "-32"], "--n-embd is -32"),
    (["--n-layer", "0"], "--n-layer is 0"),
    (["--n-head", "5"], "--n-head 5 does not divide --n-embd 32"),
    (["--learning-rate", "nan"], "--learning-rate is nan"),
    (["--temperature", "-1"], "--temperature is -1"),
    (["--device", "abacus"], "--device abacus is not known"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--precision", "fp8"], "fp8"),
    (["--stepz", "3"], "--stepz"),
    (["--corpus", "no/such/file.txt"], "file.txt"),
    (["--corpus", "EMPTY"], "is empty"),
    (["--corpus", "SHORT"], "too short"),
    (["--corpus", "LATIN1"], "not UTF-8"),
    (["--block-size", "100000"], "too short"),
    (["--prompt", "to be 🎭"], "'🎭' at position 6"),
    (["--loss-csv", "OTHER"], "line 1 of"),
    (["--runs-dir", "OTHER"], "--runs-dir"),
    (["--seed", "99999999999999999999999"], "--seed"),
]


@pytest.mark.parametrize(("flags", "words"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_ends_in_one_line_and_writes_nothing(flags, words, tmp_path, text_file, capsys):
    from stages import pre_norm

    files = {"EMPTY": b"", "SHORT": b"to be or not", "LATIN1": "déjà vu".encode("latin-1"), "OTHER": b"a,b\n1,2\n"}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    flags = [str(tmp_path / flag) if flag in files else flag for flag in flags]
    given = ["--corpus", str(text_file), "--steps", "1", *outputs(tmp_path), *flags]
    with pytest.raises(SystemExit) as stop:
        run(pre_norm.LanguageModel, pre_norm.Config, given)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert words in said.err
    left = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert left == before


def test_a_loss_that_is_no_number_stops_the_run_and_spoils_no_log(tmp_path, text_file, capsys):
    with pytest.raises(SystemExit) as stop:
        train_here(MODULES[3], tmp_path, text_file, "--learning-rate", "1e30", "--steps", "8")
    assert stop.value.code == 2
    assert "try a smaller --learning-rate" in capsys.readouterr().err
    assert read_log(tmp_path / "log.csv")["val_loss"].between(0, 1e30).all()
    (path,) = (tmp_path / "runs").iterdir()
    assert all(weights.isfinite().all() for weights in load_checkpoint(path)["weights"].values())


def test_what_does_not_fit_into_memory_ends_in_one_line(tmp_path, text_file, capsys):
    with pytest.raises(SystemExit) as stop:
        train_here(MODULES[6], tmp_path, text_file, "--n-embd", "40000000")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory; try a smaller")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])  # boxes are drawn otherwise where a console lacks theirs
def test_a_wrong_flag_is_named_in_one_line(encoding):
    command = [sys.executable, str(ROOT / "bigram.py"), "--stepz", "3"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, encoding=encoding
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: Unrecognized options: --stepz, 3; --help lists the flags"


def test_a_bad_command_line_shows_no_traceback(tmp_path):
    for command in (["bigram.py", "--steps", "-1"], ["helper_scripts/run_ladder.py", "bigrum"]):
        done = start([sys.executable, str(ROOT / command[0]), *command[1:]], tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [plot_loss, ladder_table], ids=rung_id)
@pytest.mark.parametrize("log", ["none.csv", "foreign.csv", "bare.csv"])
def test_a_log_with_nothing_to_show_is_an_error(module, log, tmp_path, monkeypatch, capsys):
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "bare.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    picture = ["--out", str(tmp_path / "curves.png")] if module is plot_loss else []
    monkeypatch.setattr(sys, "argv", ["command", "--loss-csv", str(tmp_path / log), *picture])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and log in said
    assert not (tmp_path / "curves.png").exists()


def test_a_picture_that_cannot_be_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plot_loss", "--out", str(tmp_path / "curves.xyz")])
    with pytest.raises(SystemExit):
        plot_loss.main()
    assert "does not end in a kind of picture" in capsys.readouterr().err


# The plot and the table


@pytest.fixture
def log(tmp_path, text_file):
    """Two rungs with two seeds each; and, not to be mixed in: another corpus, other settings, an older run, a torso."""
    for module in (MODULES[4], MODULES[0]):
        for seed in "01":
            train_here(module, tmp_path, text_file, "--seed", seed)
    path = tmp_path / "log.csv"
    rows = read_log(path).assign(flags="", steps=2)  # as if two steps were the rungs' own
    rows.loc[rows["experiment"] == "bigram", "val_loss"] = [4.0, 3.5, 3.25, 4.0, 3.5, 2.75]
    first = rows[rows["run"] == rows["run"].iloc[-1]]
    strangers = [
        first.assign(run="older", val_loss=9.0),
        first.assign(run="other-corpus", corpus="another", val_loss=9.0),
        first.assign(run="other-settings", flags="--steps 7", config="0badcafe", val_loss=9.0),
        first.assign(run="torso", seed=8, steps=7, val_loss=9.0),
        first.assign(run="no-rung", experiment="stranger", val_loss=9.0),
        first.assign(run="other-architecture", seed=9, parameters=7, val_loss=9.0),
        first.assign(run="other-precision", seed=9, precision="bf16", val_loss=9.0),
    ]
    pd.concat([strangers[0], *strangers[5:], rows, *strangers[1:5]]).to_csv(path, index=False, lineterminator="\n")
    return path


def test_the_table_has_means_over_comparable_runs_alone(log, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ladder_table", "--loss-csv", str(log), "--corpus", "words.txt"])
    ladder_table.main()
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["bigram", "residual"]
    assert "**3.000** ± 0.354 (n = 2)" in rows[0]  # of 3.25 and 2.75: mean 3, deviation 0.25 * sqrt(2)
    assert said.count("left out 1 run ") == 7
    assert "9.0" not in said


def test_other_settings_are_rows_of_their_own_on_request(log, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ladder_table", "--loss-csv", str(log), "--corpus", "words.txt", "--variants"])
    ladder_table.main()
    said = capsys.readouterr().out
    assert "| `bigram --steps 7` |" in said and "**3.000**" in said


def test_the_table_goes_between_the_markers(log, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- ladder table: begin -->\nold\n<!-- ladder table: end -->\nafter\n", encoding="utf-8")
    command = ["ladder_table", "--loss-csv", str(log), "--corpus", "words.txt", "--write", str(page)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", command)
        ladder_table.main()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n")
    assert text.count("| `bigram` |") == 1 and "old" not in text
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(SystemExit):
        ladder_table.main()
    assert page.read_text(encoding="utf-8") == "no markers"


def full_disk(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["page", "picture"])
def test_a_full_disk_leaves_the_page_and_the_picture_as_they_were(what, log, tmp_path, monkeypatch, capsys):
    there = tmp_path / ("page.md" if what == "page" else "curves.svg")
    there.write_text("<!-- ladder table: begin -->\n<!-- ladder table: end -->\n", encoding="utf-8")
    before, names = there.read_bytes(), sorted(tmp_path.iterdir())
    command = ["command", "--loss-csv", str(log), "--corpus", "words.txt"]
    monkeypatch.setattr(sys, "argv", [*command, "--write" if what == "page" else "--out", str(there)])
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(SystemExit) as stop:
        (ladder_table if what == "page" else plot_loss).main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"cannot write {there}: No space left on device" in said and said.count("\n") == 1
    assert there.read_bytes() == before and sorted(tmp_path.iterdir()) == names


def test_runs_of_two_precisions_and_devices_are_named(log, capsys, monkeypatch):
    rows = read_log(log)
    rows.loc[rows["experiment"] == "residual", ["precision", "device"]] = ["bf16", "cuda"]
    rows.to_csv(log, index=False, lineterminator="\n")
    monkeypatch.setattr(sys, "argv", ["ladder_table", "--loss-csv", str(log), "--corpus", "words.txt"])
    ladder_table.main()
    said = capsys.readouterr().out
    assert "not of one precision" in said and "bf16 (2), fp32 (2)" in said
    assert "not of one device" in said and "cpu (2), cuda (2)" in said


def test_readmes_tables_are_the_committed_logs(tmp_path):
    """Of what is committed: a run of one's own joins the log, and need not be in README."""

    def committed(path):
        done = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, encoding="utf-8")
        if done.returncode:
            pytest.skip("not a git checkout")
        return done.stdout

    log = tmp_path / "log.csv"
    log.write_text(committed("data/loss_gpt_pd.csv"), encoding="utf-8", newline="\n")
    table = ladder_table.markdown_table(load_results(log))
    assert len(table.splitlines()) >= 2 + 8
    assert table in committed("README.md")
    for budget in ("laptop", "short"):
        table = ladder_table.markdown_table(load_results(log, budget=budget))
        assert len(table.splitlines()) >= 2 + 7
        assert table in committed("README.md")
    variants = load_results(log, variants=True)
    assert equal.both_readings(variants) in committed("README.md")
    quick = [label for label in variants.order if "--recipe quick" in label]
    assert len(quick) >= 2
    for losses in map(variants.losses, quick):  # what is written by hand
        spread = f" ± {losses.std():.3f}" if len(losses) > 1 else ""
        assert f"{losses.mean():.3f}{spread} (n = {len(losses)})" in committed("README.md").replace("**", "")
    corners, _ = controls.all_corners(log)
    assert controls.two_by_two(corners) in committed("README.md")


def test_all_settings_in_one_picture_are_another_picture(log, tmp_path, monkeypatch):
    monkeypatch.setattr(plot_loss, "IMAGES", tmp_path / "images")
    command = ["plot_loss", "--loss-csv", str(log), "--corpus", "words.txt"]
    for flags in ([], ["--variants"]):
        monkeypatch.setattr(sys, "argv", [*command, *flags])
        plot_loss.main()
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"loss_curves.png", "loss_curves_variants.png"}


def test_the_plot_has_ink_in_every_panel(log, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pictures" / "curves.png"
    monkeypatch.setattr(sys, "argv", ["plot_loss", "--loss-csv", str(log), "--corpus", "words.txt", "--out", str(out)])
    plot_loss.main()
    said = capsys.readouterr().out
    assert said.count("left out") == 7 and "drew 4 runs of 2 rungs on words.txt" in said
    figure = plot_loss.draw(load_results(log, "words.txt"), Figure())
    figure.canvas.draw()
    picture = matplotlib.image.imread(out)
    height, width = picture.shape[:2]
    assert [panel.get_title().partition("\n")[0] for panel in figure.axes[:2]] == ["bigram", "residual"]
    assert len(figure.axes) == 3  # and the ladder
    for panel in figure.axes:
        box = panel.get_position()
        rows = slice(int((1 - box.y1) * height), int((1 - box.y0) * height))
        pixels = picture[rows, int(box.x0 * width) : int(box.x1 * width), :3]
        colourful = (pixels.max(axis=-1) - pixels.min(axis=-1) > 0.3).sum()
        assert colourful > 20, panel.get_title()
    assert figure.axes[0].get_title() == "bigram\n3.000 ± 0.354 (n = 2)"


def drawn(panel) -> dict[str, list]:
    """The curves of a panel, by colour and style, as lists of points."""
    return {f"{line.get_color()} {line.get_linestyle()}": line.get_xydata().tolist() for line in panel.get_lines()}


def test_curves_are_means_over_seeds_against_what_was_asked_for(log):
    results = load_results(log, "words.txt")
    results.rows["seconds"] = results.rows["step"] * (2.0 + results.rows["seed"])  # one seed slower than the other
    rows = results.rows[results.rows["label"] == "bigram"]
    means = rows.groupby("step")[["val_loss", "seconds", "tokens"]].mean()
    for x, column in (("steps", None), ("seconds", "seconds"), ("characters", "tokens")):
        bigram, residual, _ = plot_loss.draw(results, Figure(), x).axes
        assert bigram.get_xlabel() == x
        across = [0, 1, 2] if column is None else means[column].tolist()
        curve = [points for points in drawn(bigram).values() if len(points) == 3][-1]
        assert curve == [pytest.approx(point) for point in zip(across, means["val_loss"], strict=True)]
        assert curve in [points for style, points in drawn(residual).items() if style.startswith("0.6")]  # in grey


def test_a_scaled_up_rung_has_axes_of_its_own(log):
    results = load_results(log, "words.txt")
    results.rows.loc[results.rows["label"] == "residual", "tokens"] *= 8
    results.rows.loc[results.rows["label"] == "residual", ["train_loss", "val_loss"]] /= 3
    bigram, residual, _ = plot_loss.draw(results, Figure(), "characters").axes
    assert bigram.get_ylim()[0] > 2 > residual.get_ylim()[0]
    assert residual.get_xlim()[1] == 8 * bigram.get_xlim()[1]
    results.rows.loc[results.rows["label"] == "residual", "tokens"] //= 8
    bigram, residual, _ = plot_loss.draw(results, Figure(), "characters").axes
    assert (bigram.get_xlim(), bigram.get_ylim()) == (residual.get_xlim(), residual.get_ylim())


def test_only_the_rungs_that_were_asked_for_are_drawn(log, tmp_path, monkeypatch, capsys):
    common = ["plot_loss", "--loss-csv", str(log), "--corpus", "words.txt", "--out", str(tmp_path / "curves.svg")]
    monkeypatch.setattr(sys, "argv", [*common, "--rungs", "residual", "--x", "seconds"])
    plot_loss.main()
    assert "drew 2 runs of 1 rungs" in capsys.readouterr().out
    for rung, words in (("gpt", "there are no runs to show of gpt"), ("residul", "there is no rung residul")):
        monkeypatch.setattr(sys, "argv", [*common, "--rungs", rung])
        with pytest.raises(SystemExit):
            plot_loss.main()
        assert words in capsys.readouterr().err


def test_the_benchmark_holds_rung_8_against_the_plain_reference(text_file, monkeypatch, capsys):
    gpt = MODULES[RUNGS.index("gpt")]
    tiny = {"n_embd": 12, "n_head": 2, "n_layer": 1, "block_size": 8, "batch_size": 4}
    monkeypatch.setattr(gpt.Config, "RECIPES", {"lecture": tiny})
    monkeypatch.setattr(benchmark, "_measure", lambda *args: {})  # the table of the rungs, at their own sizes
    sampling = benchmark._sampling
    monkeypatch.setattr(benchmark, "_sampling", lambda *args: sampling(*args[:2], gpt.Config(**tiny)))
    flags = ["gpt", "--rounds", "1", "--text-mb", "1", "--device", "cpu", "--corpus", str(text_file)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    benchmark.main()
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    (reference,) = (words for words in said if words[:1] == ["reference"])
    (ours,) = (words for words in said if words[:1] == ["gpt"])
    steps = [float(reference[2]), float(ours[2])]
    assert (reference[1], ours[1]) == ("fp32", "fp32")
    assert said[-3][:3] == ["sampling", "16", "characters"]
    assert float(reference[-1]) == 1 and float(ours[-1]) == pytest.approx(steps[0] / steps[1], rel=2e-3, abs=0.006)
