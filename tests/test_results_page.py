"""docs/results.md as the command writes it, from logs whose figures are known."""

from __future__ import annotations

import math
import re
import shlex

import pytest
from conftest import runs
from matplotlib.image import imread
from scipy import stats

from data.loss_log import COLUMNS
from helper_scripts import compare, controls, ladder_table, plot_loss, results_page, run_ladder, sections
from helper_scripts.markers import write_between_markers
from helper_scripts.models import config_of
from helper_scripts.results_page import all_sections
from training.cli import parse
from training.config import config_hash

LAPTOP = "--preset laptop"


@pytest.fixture(autouse=True)
def flops_of_parameters(monkeypatch):
    """Counting FLOPs is slow, and test_results.py tests it."""
    monkeypatch.setattr(ladder_table, "training_flops", lambda label, parameters: 6.0 * parameters)


@pytest.fixture
def full_log(log):
    """Runs for every section of the page."""
    labels = ["bigram", "pre_norm", "gpt", "modern", "modern --preset quick", "averaging --preset epochs"]
    labels += [f"{rung} {LAPTOP}" for rung in ("gpt", "rotary", "modern", "previous_token")]
    labels += [f"ablation {LAPTOP} --without {part}" for part in sections.PARTS]
    labels += [label for label in sum(controls.TABLES.values(), ()) if label not in labels]
    rates = [f"--learning-rate {rate}" for rate in sections.RATES]
    labels += [f"{rung} {rate}" for rung in (f"gpt {LAPTOP} --holdout", "bigram --holdout") for rate in rates]
    return log(*(runs(label, 2.0, 2.1 + number / 100) for number, label in enumerate(dict.fromkeys(labels))))


def parts(printed: str) -> dict[str, str]:
    """The page's sections by their titles."""
    return {part.partition("\n")[0]: part for part in printed.split("\n## ")}


def cells(part: str, label: str) -> list[str]:
    """The row of a table."""
    (row,) = re.findall(rf"^\| `{re.escape(label)}` \| (.*) \|$", part, flags=re.MULTILINE)
    return row.split(" | ")


def test_the_page_matches_figures_by_hand(log, command):
    rotary, short_conv = (f"ablation {LAPTOP} --without {part}" for part in ("rotary", "short_conv"))
    path = log(
        runs("bigram", 2.5, 2.6, parameters=4225, commit="aaaa", torch="2.0"),
        runs("self_attention", 2.3, 2.5, shared_code="older", commit="bbbb", torch="2.0"),
        runs(f"modern {LAPTOP}", 1.5, 1.6, 1.8, commit="aaaa", torch="2.0"),
        runs(rotary, 1.6, 1.8, 1.85, commit="aaaa", torch="2.0"),
        runs(short_conv, 1.4, commit="aaaa", torch="2.0"),
        runs(f"ablation {LAPTOP} --without swiglu", 1.5, shared_code="older", commit="bbbb", torch="2.0"),
        runs(f"gpt {LAPTOP} --holdout --learning-rate 1e-3", 1.9, 1.8, commit="aaaa", torch="2.0"),
        runs(f"gpt {LAPTOP} --holdout", 1.7, commit="aaaa", torch="2.0"),
        runs("gpt --steps 7", 9.0),
    )
    page = parts(command(results_page, "--loss-csv", path))
    assert (
        "\nThe page shows 15 runs on tinyshakespeare (sha256 86c4e6aa9db7...), of commit aaaa, bbbb, "
        in page["# Results"]
    )
    ladder = page["Rungs 1 to 8"]
    bits = f"{2.55 / math.log(2):.3f}"
    assert cells(ladder, "bigram")[1:] == ["**2.550** ± 0.071 (n = 2)", bits, "2.47", "", "4,225", "25 k", "1.28 M"]
    assert cells(ladder, "self_attention")[4] == ""  # their shared code differs
    for note in (
        "- Runs of earlier code, because there are none of the present code: self_attention.",
        "- No runs yet: `multi",
    ):
        assert f"\n{note}" in ladder
    low, high = stats.t.interval(0.95, 2, 0.35 / 3, stats.sem([0.1, 0.2, 0.05]))
    ablated = page["Ablation: modern without one part"]
    assert cells(ablated, "ablation --without rotary")[2] == f"+0.117 ({low:+.3f} to {high:+.3f}, n = 3)"
    assert cells(ablated, "ablation --without short_conv")[2] == "-0.100 (n = 1)"
    assert cells(ablated, "ablation --without swiglu")[2] == "not compared: other shared code"
    rates = page["Learning rates"]
    assert cells(rates, "gpt") == ["1.850 (n = 2)", "**1.700** (n = 1)", "-", "0.003"]
    assert "### The laptop preset" in rates and "### Rungs 1 to 7" not in rates
    assert page["The quick preset"].endswith(
        "\nNo runs yet. To train them: `python helper_scripts/run_ladder.py modern --preset quick --seeds 3`\n"
    )


def test_the_page_says_which_rung_overfits(log, command):
    overfitting = runs("modern", 4.5, 4.7)
    for row in overfitting:
        halfway = row["step"] == 2940
        row |= {"val_loss": 1.4 + 0.2 * row["seed"]} if halfway else {}
        row |= {"train_loss": 1.3 if halfway else 0.8} if row["step"] else {}
    page = parts(command(results_page, "--loss-csv", log(runs("gpt", 1.5, 1.6), overfitting)))
    text = page["Rungs 8 and 15 at rung 8's size"]
    assert "`modern` overfits: the mean of its validation losses is lowest at step 2,940, 1.500; " in text
    assert "while the train loss falls from 1.300 to 0.800." in text and "`gpt` overfits" not in text


def test_the_commands_of_a_section_train_its_runs_and_print_them(full_log, command, monkeypatch):
    monkeypatch.setattr(plot_loss, "write_plot", lambda results, out, x: print(results.order))
    scripts = {"ladder_table": ladder_table, "compare": compare, "controls": controls, "plot_loss": plot_loss}
    for section in all_sections(full_log):
        if section.title == "The lowest loss":  # its commands name checkpoints
            continue
        trained = set()
        for typed in section.trained_by:
            start, script, *words = shlex.split(typed)
            assert (start, script) == ("python", "helper_scripts/run_ladder.py")
            configs, broken = run_ladder.all_configs(parse(run_ladder.Options, "", words))
            trained |= {(rung, config_hash(config), config.seed) for rung, config in configs}
            assert not broken
        shown = [results.final() for results in section.shown]
        assert shown and all(
            set(zip(each["rung"], each["config"], each["seed"], strict=True)) <= trained for each in shown
        )
        printed = ""
        for typed in section.printed_by:
            module = scripts[typed.split()[1].removeprefix("helper_scripts/").removesuffix(".py")]
            printed += command(module, *shlex.split(typed)[2:], "--loss-csv", full_log)
        for results in section.shown:
            for label in results.order:
                rung, _, rate = label.partition(" --learning-rate ")
                own = rate and config_of(results.full(rung)).learning_rate == float(rate)  # the default needs no flag
                assert (rung if own else label) in printed


def test_the_chain_and_its_mixture_match_figures_by_hand(log, command):
    chain = (
        ("modern", 0, "--preset quick", 1.5, 1.6),
        ("distillation", 3, "--preset quick --steps 1960 --teachers modern-a modern-a --teacher-share 0.8", 1.4),
        (
            "distillation",
            6,
            "--preset quick --steps 2940 --learning-rate 0.003 --n-embd 256 --teachers distillation-b "
            "--teacher-share 0.8",
            1.3,
            1.2,
            1.25,
        ),
    )
    rows = [
        runs(f"{rung} --preset quick", *losses, first=first, flags=flags, steps=5)
        for rung, first, flags, *losses in chain
    ]
    names = [row["run"] for row in rows[-1][2::3]]
    mixture = runs("modern --preset quick", 1.1, rung="mixture", flags=" ".join(names), parameters=30, tokens=9)
    others = runs("modern --preset quick", 1.0, rung="mixture", flags=names[0])
    decoys = [runs("gpt --preset quick", 3.0), runs("modern --preset quick", 3.0, shared_code="before")]
    decoys += [runs("modern --preset quick", 3.0, first=3, flags="--preset quick")]
    printed = parts(command(results_page, "--loss-csv", log(*rows, mixture, others, *decoys)))["The lowest loss"]
    found = re.findall(r"\*\*(\d\.\d{3})\*\*[^|]*\| (\d\.\d{3}) \| (\d\.\d{3}) \|", printed)
    means = [1.55, 1.4, 1.25, 1.1]
    assert found == [(f"{mean:.3f}", f"{mean / math.log(2):.3f}", f"{mean - 0.1:.3f}") for mean in means]
    without = parts(command(results_page, "--loss-csv", log(*rows, others)))
    assert "\nNo runs yet" in without["The lowest loss"]


def test_write_updates_the_page_readme_and_pictures(log, tmp_path, monkeypatch, command):
    """Without --write it prints the same page. Pictures have a white background, readable on a dark page."""
    path = log(*(runs(label, 2.0, 2.1) for label in ("bigram", "gpt", f"gpt {LAPTOP}", f"rotary {LAPTOP}")))
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    monkeypatch.setattr(results_page, "README", readme)
    monkeypatch.setattr(results_page, "PAGE", page)
    monkeypatch.setattr(plot_loss, "IMAGES", tmp_path / "images")
    readme.write_bytes(b"before\n<!-- ladder table: begin -->\n<!-- ladder table: end -->\nafter\n")
    command(results_page, "--loss-csv", path, "--write")
    written = page.read_bytes().decode()
    assert written == command(results_page, "--loss-csv", path)
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert lines[2] == "| rung | adds | validation loss | parameters | FLOPs a character |"
    assert [line.split("`")[1] for line in lines[4:-2]] == ["bigram", "gpt"]
    pictures = re.findall(r"\]\(\.\./(images/.*?)\)", written)
    assert len(pictures) == 3
    for picture in pictures:
        pixels = imread(tmp_path / picture)
        assert (pixels[..., 3] == 1).all() and (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_table_is_written_between_the_markers(end, tmp_path):
    page = tmp_path / "page.md"
    before, after = "é before\n<!-- ladder table: begin -->\n", "\n<!-- ladder table: end -->\nafter\n"
    page.write_bytes(f"{before}old{after}".replace("\n", end).encode())
    for _ in range(2):
        write_between_markers(page, {"ladder table": "a\nb"})
    assert page.read_bytes().decode() == f"{before}a\nb{after}".replace("\n", end)


def test_a_page_that_cannot_be_written_is_a_one_line_error(log, tmp_path, monkeypatch, command):
    readme = tmp_path / "README.md"
    readme.write_bytes(b"no markers")
    monkeypatch.setattr(results_page, "README", readme)
    path = log(runs("bigram", 2.5))
    assert "lacks the lines <!-- ladder" in command(results_page, "--loss-csv", path, "--write", fails=True)
    assert readme.read_bytes() == b"no markers"
    assert "no loss log" in command(results_page, "--loss-csv", tmp_path / "none.csv", fails=True)


def test_a_row_of_a_mixture_does_not_change_tables(log, command):
    own = runs("bigram", 2.5, 2.6) + runs("residual", 2.0, 2.1)
    mixture = [own[-1] | {"run": "mixture-1", "rung": "mixture", "config": "", "flags": "", "val_loss": 1.0}]
    assert mixture[0].keys() == COLUMNS.keys()
    printed = []
    for rows in (own, own + mixture):
        path = log(rows)
        printed.append([command(each, "--loss-csv", path) for each in (results_page, ladder_table, compare)])
    assert printed[0] == printed[1]
