"""Which runs of a log are shown, and what tables, pictures and models are made of them."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

import gpt
import stages.residual
from data import UserError
from data.loss_log import COLUMNS
from helper_scripts import controls, ladder_table, models, plot_loss
from helper_scripts.models import RUNGS, checkpoints, config_of, load_model, rung_before, rung_path, training_flops
from helper_scripts.results import Selection, load_results
from training import train_rung
from training.config import changed_flags, config_hash
from training.provenance import rung_code, shared_code

NUMBERS = itertools.count()


def runs(label: str, *losses: float, first: int = 0, **columns) -> list[dict]:
    """Rows of the log: finished runs of seeds from `first` on, of `label` by its file and the code as they are."""
    rung, config = label.split()[0], config_of(label)
    row = {name: {str: "x", int: 5, float: 1.0}[kind] for name, kind in COLUMNS.items()}
    row |= {"rung": rung, "config": config_hash(config), "flags": changed_flags(config), "steps": config.steps}
    row |= {"rung_code": rung_code(rung_path(rung)), "shared_code": shared_code(), "precision": "fp32"}
    row |= {"corpus": "tinyshakespeare", "corpus_sha256": "86c4e6aa9db7", "device": "cpu"}
    rows = []
    for seed, loss in enumerate(losses, start=first):
        own = row | {"run": f"{rung}-{next(NUMBERS)}", "seed": seed} | columns
        for part in (0.0, 0.5, 1.0):  # a curve from 4.2 down to the loss
            step, value = int(own["steps"] * part), loss + (4.2 - loss) * (1 - part)
            rows.append(own | {"step": step, "val_loss": value, "train_loss": value - 0.1, "tokens": 256 * step})
    return rows


@pytest.fixture
def log(tmp_path):
    def write(*parts: list[dict], name: str = "log.csv") -> Path:
        table = pd.DataFrame([row for part in parts for row in part], columns=list(COLUMNS))
        table.to_csv(tmp_path / name, index=False, lineterminator="\n")
        return tmp_path / name

    return write


@pytest.fixture
def command(monkeypatch, capsys):
    def start(module, *args) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return start


# Which runs


def test_what_is_averaged_is_alike_and_the_rest_is_named(log):
    shown = load_results(
        Selection(
            log(
                runs("residual", 9.0, corpus="another"),
                runs("residual", 9.0, corpus_sha256="another"),
                runs("residual", 2.0, 2.2, 2.4),
                runs("residual", 9.0, rung="stranger"),
                runs("residual --steps 7", 9.0),
                runs("residual", 9.0, config="reverted"),
                runs("residual", 9.0, first=5)[:-1],
                runs("residual", 9.0, first=6, rung_code="older"),
                runs("residual", 9.0, first=7, precision="bf16"),
                runs("residual", 2.6, first=1),
                runs("residual", corpus_sha256="another"),
            )
        )
    )
    assert shown.losses("residual").to_dict() == {0: 2.0, 1: 2.6, 2: 2.4}
    assert [line.split(" run")[0] for line in shown.left_out] == [
        "left out 1", "left out 1", "left out 1", "left out 1", "left out 1", "left out 1", "left out 1", "left out 2"
    ]  # fmt: skip
    for words in ("another corpus", "another text", "ladder does not", "not finish", "other code", "precision", "seed"):
        assert sum(words in line for line in shown.left_out) == 1, words


@pytest.mark.parametrize("column", ["rung_code", "shared_code"])
def test_two_seeds_of_new_code_and_three_of_old_are_not_five(log, column):
    old, new = runs("residual", 2.0, 2.1, 2.2, **{column: "older"}), runs("residual", 1.8, 1.9, first=3)
    for rows in ((old, new), (new, old)):
        shown = load_results(Selection(log(*rows)))
        assert shown.losses("residual").to_dict() == {3: 1.8, 4: 1.9}
        assert shown.left_out == ["left out 3 runs of other code, be it their rung's or the shared"]
    shown = load_results(Selection(log(runs("residual", 3.0, **{column: "oldest"}), old)))
    assert len(shown.losses("residual")) == 3
    assert shown.left_out[1:] == ["of earlier code, as there are no runs of the present code: residual"]


def test_presets_and_holdout_are_kept_apart(log):
    flags = ("", "--preset laptop", "--preset laptop --holdout", "--holdout", "--preset laptop --n-layer 2")
    path = log(*(runs(f"gpt {each}", 2.0 + k, 2.1 + k) for k, each in enumerate(flags)), runs("bigram", 2.5))
    for options, losses in (
        ({}, {"gpt": 2.0, "bigram": 2.5}),
        ({"preset": "laptop"}, {"gpt": 3.0}),
        ({"preset": "laptop", "holdout": True}, {"gpt": 4.0}),
        ({"holdout": True}, {"gpt": 5.0}),
        ({"preset": "laptop", "variants": True}, {"gpt": 3.0, "gpt --n-layer 2": 6.0}),
        ({"variants": True}, {"gpt": 2.0, "bigram": 2.5}),
    ):
        variants = options.pop("variants", False)
        shown = load_results(Selection(path, **options), variants=variants)
        assert {label: shown.losses(label)[0] for label in shown.order} == losses
        flags = "--preset laptop" * ("preset" in options) + " --holdout" * ("holdout" in options)
        assert shown.flags == flags.strip()
        assert all(config_hash(config_of(shown.full(each))) in set(shown.rows["config"]) for each in shown.order)


def test_settings_count_however_they_were_typed(log):
    """The present settings are the rung's, whatever flags led to them when they were not; and flags go in any order."""
    path = log(runs("residual", 2.0, flags="--steps 5000"), runs("residual --learning-rate 3e-3 --steps 9", 1.0))
    assert load_results(Selection(path)).losses("residual")[0] == 2.0
    assert load_results(Selection(path), variants=True).order == [
        "residual",
        "residual --steps 9 --learning-rate 0.003",
    ]
    for label in ("residual --learning-rate .003 --steps 9", "residual --n-layer 3 --steps=9 --learning-rate 3e-3"):
        assert load_results(Selection(path), labels=(label,)).losses(label)[0] == 1.0


def test_a_file_goes_by_its_name_with_or_without_the_digits(log):
    path = log(
        runs("bigram", 1.0, corpus="a.txt (123456)", corpus_sha256="1"),
        runs("bigram", 2.0, corpus="b.txt (123456)", corpus_sha256="2"),
        runs("bigram", 3.0, corpus="b.txt (654321)", corpus_sha256="3"),
    )
    for name, loss in ((None, 3.0), ("a.txt", 1.0), ("b.txt (123456)", 2.0)):
        assert load_results(Selection(path, name)).losses("bigram")[0] == loss
    for name, words in (("b.txt", "more than one corpus b.txt"), ("c.txt", "no corpus c.txt; choose one of a.txt (1")):
        with pytest.raises(UserError, match=words.replace("(", "\\(")):
            load_results(Selection(path, name))


def test_what_comes_before_a_rung(monkeypatch):
    steps = ["bigram --steps 2", "residual --steps 2"]
    assert [rung_before(label, steps) for label in steps] == [None, "bigram --steps 2"]
    order = ["bigram", "residual", "residual --n-layer 1", "gpt", "gpt --steps 9", "rotary", "previous_token"]
    assert [rung_before(label, order) for label in order] == [
        None, "bigram", "residual", "residual", "gpt", "gpt", "gpt"
    ]  # fmt: skip
    assert rung_before("previous_token", ["bigram", "previous_token"]) is None
    monkeypatch.setattr(stages.residual, "AFTER", "bigram", raising=False)  # so that it is beside the ladder, too
    assert rung_before("gpt", order) == "bigram"


@pytest.mark.parametrize("module", [plot_loss, ladder_table], ids=["plot", "table"])
@pytest.mark.parametrize("rows", [None, [], [{"rung": "stranger"}]], ids=["no log", "no rows", "no rung"])
def test_a_log_with_nothing_to_show_is_an_error(module, rows, log, tmp_path, command, capsys):
    if rows is not None:
        log([runs("bigram", 2.5)[-1] | row for row in rows])
    picture = ["--out", tmp_path / "curves.png"] * (module is plot_loss)
    with pytest.raises(SystemExit) as stop:
        command(module, "--loss-csv", tmp_path / "log.csv", *picture)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "log.csv" in said and not (tmp_path / "curves.png").exists()


def test_what_a_log_says_is_escaped(log, command):
    path = log(runs("residual", 2.0), runs("residual", 2.0, flags="--gone \x1b[31m", config="gone"))
    said = command(ladder_table, "--variants", "--loss-csv", path)
    assert "`residual --gone \\x1b[31m`" in said and "\x1b" not in said


# Tables


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table, by their first cell."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_table_by_hand(log, command):
    rows = [runs("bigram", 2.5, 2.5, 2.8, parameters=4225), runs("residual", 2.0, 2.1, 2.5, parameters=1)]
    path = log(*rows)
    said = command(ladder_table, "--loss-csv", path)
    table = cells(said)
    assert "commit" not in said and "write-up" in table["rung"]
    deviation = np.std([2.5, 2.5, 2.8], ddof=1)
    assert table["bigram"][:2] == ["a table of next-character logits", f"**2.600** ± {deviation:.3f} (n = 3)"]
    assert table["bigram"][2:6] == ["2.47", "", "4,225", "0 k"]
    low, high = stats.t.interval(0.95, 2, -0.4, stats.sem([-0.5, -0.4, -0.3]))
    assert table["residual"][2:6] == ["2.20", f"-0.400 ({low:+.3f} to {high:+.3f}, n = 3)", "1", "-"]
    assert said.splitlines()[-1].startswith("no FLOPs of residual: no alphabet gives it 1 parameters")
    for row in itertools.chain(*rows):
        row |= {"corpus": "mine", "corpus_sha256": "m"}
    assert "write-up" not in command(ladder_table, "--loss-csv", log(*rows))
    scaled = log(runs("gpt --preset laptop", 2.0), runs("rotary --preset laptop", 1.9))
    table = cells(command(ladder_table, "--loss-csv", scaled, "--preset", "laptop"))
    assert [*table][2:] == ["gpt", "rotary"] and "write-up" not in table["rung"]
    assert table["rotary"][2] == "-0.100 (n = 1)"


def test_rungs_of_other_shared_code_are_not_compared(log):
    shown = load_results(
        Selection(log(runs("bigram", 2.5), runs("residual", 2.1, 2.2, shared_code="older"), runs("post_norm", 2.0)))
    )
    table = cells(ladder_table.markdown_table(shown))
    assert table["residual"][3] == table["post_norm"][3] == ""
    assert (
        shown.left_out[-1 - 3]
        == "not compared, as their shared code differs: residual with bigram, post_norm with residual"
    )


@pytest.mark.parametrize(("rung", "vocab"), [("bigram", 65), ("pre_norm", 7), ("self_attention", 65)])
def test_flops_by_hand(rung, vocab):
    """Two for each weight of a matmul, and as many for each pair of positions; twice that again for the gradients."""
    C, T, layers = 32, 8, 3
    attention = 2 * (3 * C * C) + 2 * 2 * T * C
    by_hand = {
        "bigram": 0,  # it looks up, and multiplies nothing
        "self_attention": 3 * (attention + 2 * C * vocab),
        "pre_norm": 3 * (layers * (attention + 2 * C * C + 2 * 8 * C * C) + 2 * C * vocab),
    }
    model = models.rung_module(rung).LanguageModel(vocab, config_of(rung))
    assert training_flops(rung, sum(parameter.numel() for parameter in model.parameters())) == by_hand[rung]


def needs_numbers(self, *args):
    torch.ones(2).numpy()


def broken(rung):
    raise SyntaxError("invalid\x1b syntax")


@pytest.mark.parametrize(
    ("flags", "parameters", "replaced", "words"),
    [
        ("--n-layer 1000000000", 42369, None, "its n_layer is 1000000000"),
        ("--block-size 1000000000", 42369, None, "its block_size is"),
        ("", 10**18, None, "no alphabet gives it 1,000,000,000,000,000,000 parameters"),
        ("--help", 42369, None, "--help is no setting"),
        ("--tyro-write-completion bash x", 42369, None, "--tyro-write-completion is no setting"),
        ("", 42369, (stages.residual.LanguageModel, "__init__", needs_numbers), "Error: "),
        ("", 42369, (models, "LADDER", ("gone",) * len(RUNGS)), "ModuleNotFoundError: "),
        ("", 42369, (models, "rung_module", broken), "SyntaxError: invalid\\x1b syntax"),
    ],
)
def test_flops_that_cannot_be_counted_are_a_dash(flags, parameters, replaced, words, log, command, monkeypatch):
    label = f"residual {flags}".strip()
    try:
        rows = runs(label, 2.0, 2.2, parameters=parameters)
    except UserError:
        rows = runs("residual", 2.0, 2.2, parameters=parameters, flags=flags, config="theirs")
    if replaced:
        monkeypatch.setattr(*replaced)
    said = command(ladder_table, "--variants", "--loss-csv", log(rows))
    assert cells(said)[label][-3] == "-" and "usage" not in said
    assert any(line.startswith(f"no FLOPs of {label}: ") and words in line for line in said.splitlines())


PAGE = "é before\n<!-- ladder table: begin -->\nold\n<!-- ladder table: end -->\nafter\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_table_goes_between_the_markers(end, log, tmp_path, command):
    page = tmp_path / "page.md"
    page.write_bytes(PAGE.replace("\n", end).encode())
    for _ in range(2):
        command(ladder_table, "--loss-csv", log(runs("bigram", 2.5)), "--write", page)
    text = page.read_bytes().decode()
    before, _, after = PAGE.replace("\n", end).partition(f"old{end}")
    assert text.startswith(before) and text.endswith(after) and text.count("| `bigram` |") == 1
    assert text.count(end) == text.count("\n") == 4 + 3
    page.write_bytes(b"no markers")
    with pytest.raises(SystemExit):
        command(ladder_table, "--loss-csv", log(runs("bigram", 2.5)), "--write", page)
    assert page.read_bytes() == b"no markers"


@pytest.mark.parametrize("module", [ladder_table, plot_loss], ids=["page", "picture"])
def test_a_full_disk_leaves_the_page_and_the_picture_as_they_were(module, log, tmp_path, monkeypatch, command, capsys):
    there = tmp_path / ("page.md" if module is ladder_table else "curves.svg")
    there.write_text(PAGE, encoding="utf-8")
    path, before = log(runs("bigram", 2.5)), there.read_bytes()
    names = sorted(tmp_path.iterdir())
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit) as stop:
        command(module, "--loss-csv", path, "--write" if module is ladder_table else "--out", there)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"cannot write {there}: No space left on device" in said and said.count("\n") == 1
    assert there.read_bytes() == before and sorted(tmp_path.iterdir()) == names


def test_equal_parameters_are_equal():
    def parameters(label):
        model = models.rung_module(label.split()[0]).LanguageModel(65, config_of(label))
        return sum(parameter.numel() for parameter in model.parameters())

    assert all(abs(parameters(label) / parameters("pre_norm") - 1) < 0.06 for label in controls.PARAMETERS)


def test_the_controls_by_hand(log, command):
    """Depth alone costs 0.1, skips alone gain 0.1, and both together 0.3."""
    losses = {"feed_forward": 2.2, "feed_forward --n-layer 3": 2.3, "residual --n-layer 1": 2.1, "residual": 1.9}
    others = {label: 1.5 for label in (*controls.PARAMETERS, *controls.TIME)} | {"bigram": 2.5, "self_attention": 2.4}
    others |= {"multi_head": 2.3, "bigram --steps 45000": 2.4}
    parts = [
        runs(label, *(loss + 0.01 * seed + 0.003 * (seed == 0 and label in CORNERS) for seed in range(3)), seconds=3.0)
        for label, loss in (others | losses).items()
    ]
    said = command(controls, "--loss-csv", log(*parts))
    table, half = cells(said), stats.t.ppf(0.975, 2) * np.std([0.097, 0.1, 0.1], ddof=1) / np.sqrt(3)
    assert table["no skips"][:2] == ["**2.211** ± 0.009 (n = 3)", "**2.310** ± 0.010 (n = 3)"]
    assert table["no skips"][2] == f"+0.099 ({0.099 - half:+.3f} to {0.099 + half:+.3f}, n = 3)"
    assert table["skips"][2].startswith("-0.199 (") and table["what skips change"][0].startswith("-0.101 (")
    assert table["self_attention --n-embd 98"] == ["5", "**1.510** ± 0.010 (n = 3)", ""]
    assert table["multi_head --n-embd 88"][2] == "+0.000 (+0.000 to +0.000, n = 3)"
    assert table["bigram --steps 45000"][:2] == ["27", "**2.410** ± 0.010 (n = 3)"]  # 3 s for 5,000 steps
    assert table["self_attention --steps 20000"][2].startswith("-0.900 (")


CORNERS = {"feed_forward", "residual"}  # whose first seed is 0.003 higher, so that differences differ


# Pictures


@pytest.fixture
def two_rungs(log):
    return log(runs("bigram", 3.25, 2.75), runs("residual", 2.0, 2.1))


def test_the_plot_has_ink_in_every_panel(two_rungs, tmp_path, command):
    out = tmp_path / "pictures" / "curves.png"
    said = command(plot_loss, "--loss-csv", two_rungs, "--out", out)
    assert said == f"drew 4 runs of 2 rungs on tinyshakespeare: {out}\n"
    figure = plot_loss.draw(load_results(Selection(two_rungs)), Figure())
    figure.canvas.draw()
    picture = matplotlib.image.imread(out)
    height, width = picture.shape[:2]
    assert figure.axes[0].get_title() == "bigram\n3.000 ± 0.354 (n = 2)"
    assert len(figure.axes) == 3  # two rungs, and the ladder
    for panel in figure.axes:
        box = panel.get_position()
        rows = slice(int((1 - box.y1) * height), int((1 - box.y0) * height))
        pixels = picture[rows, int(box.x0 * width) : int(box.x1 * width), :3]
        assert (pixels.max(axis=-1) - pixels.min(axis=-1) > 0.3).sum() > 20, panel.get_title()


def test_a_rung_beside_the_ladder_has_a_panel_and_one_without_a_curve_has_none(log):
    shown = load_results(
        Selection(
            log(runs("bigram", 2.5)[-1:], *(runs(f"{rung}", 1.5) for rung in ("gpt", "rotary", "previous_token")))
        )
    )
    *panels, ladder = plot_loss.draw(shown, Figure()).axes
    assert [panel.get_title().partition("\n")[0] for panel in panels] == ["gpt", "rotary", "previous_token"]
    assert [label.get_text() for label in ladder.get_yticklabels()] == shown.order and len(shown.order) == 4


def drawn(panel) -> dict[str, list]:
    """The curves of a panel, by colour and style, as lists of points."""
    return {f"{line.get_color()} {line.get_linestyle()}": line.get_xydata().tolist() for line in panel.get_lines()}


def test_curves_are_means_over_seeds_against_what_was_asked_for(two_rungs):
    shown = load_results(Selection(two_rungs))
    shown.rows["seconds"] = shown.rows["step"] * (2.0 + shown.rows["seed"])  # one seed slower than the other
    rows = shown.rows[shown.rows["label"] == "bigram"]
    means = rows.groupby("step")[["step", "val_loss", "seconds", "tokens"]].mean()
    for x, column in plot_loss.X.items():
        bigram, residual, _ = plot_loss.draw(shown, Figure(), x).axes
        assert bigram.get_xlabel() == x
        curve = [points for points in drawn(bigram).values() if len(points) == 3][-1]
        assert curve == [pytest.approx(point) for point in zip(means[column], means["val_loss"], strict=True)]
        assert curve in [points for style, points in drawn(residual).items() if style.startswith("0.6")]  # in grey


def test_a_scaled_up_rung_has_axes_of_its_own(two_rungs):
    shown = load_results(Selection(two_rungs))
    for factor in (1, 8):
        shown.rows.loc[shown.rows["label"] == "residual", "tokens"] *= factor
        bigram, residual, _ = plot_loss.draw(shown, Figure(), "characters").axes
        assert (bigram.get_ylim() == residual.get_ylim()) == (factor == 1)
        assert residual.get_xlim()[1] == factor * bigram.get_xlim()[1]


def test_only_the_rungs_that_were_asked_for_are_drawn(two_rungs, tmp_path, command, capsys):
    common = ["--loss-csv", two_rungs, "--out", tmp_path / "curves.svg"]
    assert "drew 2 runs of 1 rungs" in command(plot_loss, *common, "--rungs", "residual", "--x", "seconds")
    for more, words in (
        (["--rungs", "gpt"], "there are no runs to show of gpt"),
        (["--rungs", "residul"], "there is no rung residul"),
        (["--out", tmp_path / "curves.xyz"], "does not end in a kind of picture"),
    ):
        with pytest.raises(SystemExit):
            command(plot_loss, *common, *more)
        assert words in capsys.readouterr().err


def test_each_selection_has_a_picture_of_its_own():
    names = [plot_loss.picture_of(*args).name for args in ((None,), ("laptop",), (None, True), ("laptop", True, True))]
    assert names[:2] == ["loss_curves.png", "loss_curves_laptop.png"] and len(set(names)) == 4


# Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text_file):
    folder = tmp_path_factory.mktemp("runs")
    settings = {"steps": 1, "corpus": str(text_file), "device": "cpu", "sample_length": 0, "runs_dir": folder}
    train_rung(stages.residual.LanguageModel, config_of("residual", **settings, loss_csv=folder / "log.csv"))
    (path,) = checkpoints(folder, "residual")
    return path


def test_a_model_comes_back_as_it_was_saved(checkpoint):
    trained = load_model(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(weights, saved["weights"][name]) for name, weights in trained.model.state_dict().items())
    assert (trained.rung, trained.config.steps, trained.corpus) == ("residual", 1, saved["metadata"]["corpus"])
    assert trained.last.val_loss == saved["evaluations"][-1]["val_loss"] and not trained.model.training


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("config", {"n_layer": 10**9}, "n_layer is 1000000000"),
        ("config", {"n_embd": 4096}, "n_embd is 4096"),
        ("config", {"block_size": 10**9}, "block_size is 1000000000"),
        ("config", {"steps": "5_000"}, "its steps is '5_000'"),
        ("config", {"corpus": 5}, "its corpus is '5'"),
        ("config", {"n_embd": True}, "its n_embd is 'True'"),
        ("config", {"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ("metadata", {"alphabet": "".join(map(chr, range(1000, 90_000)))}, "its alphabet has"),
        ("metadata", {"rung": "none"}, "the ladder does not name"),
        ("metadata", {"rung": "pre_norm"}, "does not fit pre_norm"),
        ("weights", {"lm_head.bias": torch.tensor([math.nan])}, "not a checkpoint"),
        ("weights", {"\x1b[31m": torch.zeros(1)}, "does not fit residual"),
    ],
)
def test_a_crafted_checkpoint_ends_in_one_line(part, change, words, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content[part] |= change
    torch.save(content, tmp_path / "crafted.pt")
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "crafted.pt")
    assert words in str(error.value) and str(error.value).isprintable()


def test_a_finished_run_comes_before_one_that_was_stopped(tmp_path):
    for name in ("gpt-seed0-a.pt", "gpt-seed1-a.pt", "gpt-seed1-a.partial.pt"):
        (tmp_path / name).touch()
    assert models.find_checkpoint(tmp_path, "gpt").name == "gpt-seed1-a.pt"
    assert models.find_checkpoint(tmp_path, "").name == "gpt-seed1-a.pt"
    assert models.find_checkpoint(tmp_path, "x.pt") == Path("x.pt")
    with pytest.raises(UserError, match="no checkpoint of bigram"):
        models.find_checkpoint(tmp_path, "bigram")


def test_presets_are_for_the_scaled_up_rungs():
    assert models.rungs_of(None)[:7] == RUNGS[:7] and "gpt" not in models.rungs_of(None)
    assert models.rungs_of("laptop", holdout=True)[0] == "gpt --preset laptop --holdout"
    assert models.with_preset("gpt --n-layer 2", "quick") == "gpt --preset quick --n-layer 2"
    assert config_of("gpt --preset quick --n-layer 2").n_layer == 2
    with pytest.raises(UserError, match="bigram has no --preset laptop; that is for gpt, "):
        models.with_preset("bigram", "laptop")
    assert gpt.Config in {models.rung_module(label.split()[0]).Config for label in models.rungs_of("laptop")}
