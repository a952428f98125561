"""Which runs of a log are shown, and the tables, plots and models of them."""

from __future__ import annotations

import io
import math
import os

import numpy as np
import pytest
import torch
from conftest import runs
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from scipy import stats

import stages.residual
from data import UserError
from helper_scripts import controls, ladder_table, models, plot_loss
from helper_scripts.models import config_of, find_checkpoint, load_model, rung_before, training_flops
from helper_scripts.results import Selection, load_results
from training import train_rung
from training.config import config_hash
from training.run import count_parameters

# Which runs


def test_only_runs_that_are_alike_are_averaged_and_the_rest_is_named(log):
    others = {
        "on another corpus": runs("residual", 9.0, corpus="another"),
        "on another text": runs("residual", 9.0, corpus_sha256="another"),
        "of rungs that the ladder does not name": runs("residual", 9.0, rung="stranger"),
        "with settings other than": runs("residual --steps 7", 9.0),
        "that did not finish": runs("residual", 9.0, first=5)[:-1],
        "of other code": runs("residual", 9.0, first=6, rung_code="older"),
        "in another precision": runs("residual", 9.0, first=7, precision="bf16"),
    }
    own = runs("residual", 2.0, 2.2, 2.4), runs("residual", 2.6, first=1)
    shown = load_results(Selection(log(*others.values(), *own)))
    assert shown.losses("residual").to_dict() == {0: 2.0, 1: 2.6, 2: 2.4}
    assert len(shown.left_out) == 8
    for words in (*others, "that a later one with the same seed replaces"):
        assert sum(line.startswith(f"left out 1 run {words}") for line in shown.left_out) == 1, words


@pytest.mark.parametrize("column", ["rung_code", "shared_code"])
def test_runs_of_new_and_of_old_code_are_not_averaged_together(log, column):
    old, new = runs("residual", 2.0, 2.1, 2.2, **{column: "older"}), runs("residual", 1.8, 1.9, first=3)
    for rows in ((old, new), (new, old)):
        shown = load_results(Selection(log(*rows)))
        assert shown.losses("residual").to_dict() == {3: 1.8, 4: 1.9}
        assert shown.left_out == ["left out 3 runs of other code, of the rung or shared"]
    shown = load_results(Selection(log(runs("residual", 3.0, **{column: "oldest"}), old)))
    assert len(shown.losses("residual")) == 3
    assert shown.left_out[1:] == ["runs of earlier code, because there are none of the present code: residual"]


def test_presets_holdout_and_variants_are_separate(log):
    flags = ("", "--preset laptop", "--preset laptop --holdout", "--holdout", "--preset laptop --n-layer 2")
    path = log(*(runs(f"gpt {each}", 2.0 + k, 2.1 + k) for k, each in enumerate(flags)), runs("bigram", 2.5))
    for options, common, losses in (
        ({"variants": True}, "", {"bigram": 2.5, "gpt": 2.0}),
        ({"preset": "laptop"}, "--preset laptop", {"gpt": 3.0}),
        ({"preset": "laptop", "holdout": True}, "--preset laptop --holdout", {"gpt": 4.0}),
        ({"holdout": True}, "--holdout", {"gpt": 5.0}),
        ({"preset": "laptop", "variants": True}, "--preset laptop", {"gpt": 3.0, "gpt --n-layer 2": 6.0}),
    ):
        shown = load_results(Selection(path, **options))
        assert {label: shown.losses(label)[0] for label in shown.order} == losses and shown.flags == common
        assert all(config_hash(config_of(shown.full(each))) in set(shown.rows["config"]) for each in shown.order)


def test_runs_are_found_by_their_settings_and_not_by_their_flags(log):
    """A run is a rung's if its settings equal the rung's present ones, whatever its flags. Flags have no order."""
    path = log(runs("residual", 2.0, flags="--steps 5000"), runs("residual --learning-rate 4e-3 --steps 9", 1.0))
    shown = load_results(Selection(path, variants=True))
    assert shown.order == ["residual", "residual --steps 9 --learning-rate 0.004"]
    assert shown.losses("residual")[0] == 2.0
    for label in ("residual --learning-rate .004 --steps 9", "residual --n-layer 3 --steps=9 --learning-rate 4e-3"):
        assert load_results(Selection(path), labels=(label,)).losses(label)[0] == 1.0


def test_a_corpus_file_is_found_by_its_name_with_or_without_its_hash(log):
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


def test_rung_before_is_the_rung_to_compare_with(monkeypatch):
    steps = ["bigram --steps 2", "residual --steps 2"]
    assert [rung_before(label, steps) for label in steps] == [None, "bigram --steps 2"]
    order = ["bigram", "residual", "residual --n-layer 1", "gpt", "gpt --steps 9", "rotary", "previous_token"]
    assert [rung_before(label, order) for label in order] == [
        None, "bigram", "residual", "residual", "gpt", "gpt", "gpt"
    ]  # fmt: skip
    assert rung_before("previous_token", ["bigram", "previous_token"]) is None
    monkeypatch.setattr(stages.residual, "AFTER", "bigram", raising=False)  # so that it is beside the ladder, too
    assert rung_before("gpt", order) == "bigram"


@pytest.mark.parametrize("rows", [None, [], [{"rung": "stranger"}]], ids=["no log", "no rows", "no rung"])
def test_a_log_with_nothing_to_show_is_an_error(rows, log, tmp_path):
    if rows is not None:
        log([runs("bigram", 2.5)[-1] | row for row in rows])
    with pytest.raises(UserError, match=r"log\.csv"):
        load_results(Selection(tmp_path / "log.csv"))


# Tables


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table, by their first cell."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_table_matches_figures_by_hand(log, command):
    path = log(
        runs("bigram", 2.5, 2.5, 2.8, parameters=4225),
        runs("residual", 2.0, 2.1, 2.5, parameters=1),
        runs("post_norm", 2.0, shared_code="older"),
    )
    printed = command(ladder_table, "--loss-csv", path)
    table, deviation = cells(printed), np.std([2.5, 2.5, 2.8], ddof=1)
    assert table["bigram"][:2] == ["a table of next-character logits", f"**2.600** ± {deviation:.3f} (n = 3)"]
    assert table["bigram"][2:7] == [f"{2.6 / math.log(2):.3f}", "2.47", "", "4,225", "0 k"]
    low, high = stats.t.interval(0.95, 2, -0.4, stats.sem([-0.5, -0.4, -0.3]))
    assert table["residual"][3:7] == ["2.20", f"-0.400 ({low:+.3f} to {high:+.3f}, n = 3)", "1", "-"]
    assert table["post_norm"][4] == ""
    notes = printed.splitlines()[-3:]
    assert "not compared, because their shared code differs: post_norm with residual" in notes
    no_flops = "no FLOPs of residual: the rung's code now gives another number of parameters than the log's 1"
    assert no_flops in notes
    scaled = log(runs("gpt --preset laptop", 2.0), runs("rotary --preset laptop", 1.9))
    table = cells(command(ladder_table, "--loss-csv", scaled, "--preset", "laptop"))
    assert [*table][2:] == ["gpt", "rotary"] and "write-up" not in table["rung"]
    assert table["rotary"][3] == "-0.100 (n = 1)"


def test_flops_of_convolutions_and_muon_match_a_count_by_hand():
    """A short convolution has four weights a channel. Newton-Schulz: five times three matmuls, x (R, C) with R <= C."""
    C, T, layers, hidden, vocab = 384, 256, 6, 1024, 65
    attention, feed_forward = 2 * 4 * C * C + 2 * 2 * T * C, 3 * 2 * C * hidden
    forward = layers * (attention + feed_forward + 2 * 2 * 4 * C) + 2 * C * vocab

    def newton_schulz(R: int, C: int) -> int:
        return 5 * (2 * R * R * C + 2 * R * R * R + 2 * R * R * C)

    update = layers * (4 * newton_schulz(C, C) + 3 * newton_schulz(C, hidden))
    model = models.rung_module("modern").LanguageModel(vocab, config_of("modern"))
    assert training_flops("modern", count_parameters(model)) == 3 * forward + update / (8 * T)


@pytest.mark.parametrize(("rung", "vocab"), [("bigram", 65), ("pre_norm", 7), ("self_attention", 65)])
def test_flops_match_a_count_by_hand(rung, vocab):
    """Two for each weight of a matmul, four for each channel and attended position; twice that for the gradients."""
    C, T, layers = 32, 8, 3
    attention = 2 * (3 * C * C) + 2 * 2 * T * C
    by_hand = {
        "bigram": 0,  # a table look-up has no matmul
        "self_attention": 3 * (attention + 2 * C * vocab),
        "pre_norm": 3 * (layers * (attention + 2 * C * C + 2 * 8 * C * C) + 2 * C * vocab),
    }
    model = models.rung_module(rung).LanguageModel(vocab, config_of(rung))
    assert training_flops(rung, count_parameters(model)) == by_hand[rung]


def needs_numbers(self, *args):
    torch.ones(2).numpy()


def broken(rung):
    raise SyntaxError("invalid\x1b syntax")


@pytest.mark.parametrize(
    ("flags", "parameters", "replaced", "words"),
    [
        ("", 10**18, None, "than the log's 1,000,000,000,000,000,000"),
        ("--tyro-write-completion bash x", 42369, None, "--tyro-write-completion is no setting"),
        ("", 42369, (stages.residual.LanguageModel, "__init__", needs_numbers), "Error: "),
        ("", 42369, (models, "rung_module", broken), "SyntaxError: invalid\\x1b syntax"),
    ],
)
def test_flops_that_cannot_be_counted_are_a_dash(flags, parameters, replaced, words, log, command, monkeypatch):
    label = f"residual {flags}".strip()
    try:
        rows = runs(label, 2.0, 2.2, parameters=parameters)
    except UserError:
        rows = runs("residual", 2.0, 2.2, parameters=parameters, flags=flags, config="theirs")
    rows += runs("gpt", 1.0, flags="--gone \x1b", config="gone")
    if replaced:
        monkeypatch.setattr(*replaced)
    printed = command(ladder_table, "--variants", "--loss-csv", log(rows))
    assert cells(printed)[label][-2] == "-" and "usage" not in printed
    assert "`gpt --gone \\x1b`" in printed and "\x1b" not in printed  # text of a log is escaped
    assert any(line.startswith(f"no FLOPs of {label}: ") and words in line for line in printed.splitlines())


def test_rungs_at_equal_parameters_differ_by_less_than_10_percent():
    sizes = [
        count_parameters(models.rung_module(label.split()[0]).LanguageModel(65, config_of(label)))
        for label in controls.PARAMETERS
    ]
    assert max(sizes) / min(sizes) < 1.1


def test_losses_on_different_splits_are_not_subtracted(log):
    labels = ("bigram", "bigram --holdout")
    results = load_results(Selection(log(runs("bigram", 2.5, 2.6), runs("bigram --holdout", 2.0, 2.1))), labels)
    table = ladder_table.markdown_table(results, ("rung", "change, and its 95% interval"))
    assert table.splitlines()[2:] == ["| `bigram` |  |", "| `bigram --holdout` |  |"]


def test_the_controls_match_figures_by_hand(log, command):
    """Depth alone costs 0.1, skips alone gain 0.1, and both together 0.3."""
    losses = dict.fromkeys((*controls.PARAMETERS, *controls.TIME), 1.5) | {"feed_forward": 2.2, "residual": 1.9}
    losses |= {
        "feed_forward --n-layer 3 --learning-rate 0.001": 2.3,
        "residual --n-layer 1": 2.1,
        "self_attention --steps 20000": 2.4,
    }
    parts = (runs(label, loss, loss + 0.01, loss + 0.02 + 0.003 * (loss == 2.1)) for label, loss in losses.items())
    depth, skips, parameters, time = command(controls, "--loss-csv", log(*parts)).split(":\n\n")[1:]
    half = stats.t.ppf(0.975, 2) * np.std([0.1, 0.1, 0.097], ddof=1) / np.sqrt(3)
    changed = f"-0.099 ({-0.099 - half:+.3f} to {-0.099 + half:+.3f}, n = 3)"
    bits = f"{2.111 / math.log(2):.3f}"
    assert cells(depth)["residual --n-layer 1"][2:] == ["**2.111** ± 0.012 (n = 3)", bits, changed, "1"]
    assert cells(skips)["feed_forward --n-layer 3 --learning-rate 0.001"][4].startswith("+0.100 (")
    assert cells(skips)["residual"][4].startswith("-0.400 (")
    assert cells(parameters)["multi_head --n-embd 88"][4] == "+0.000 (+0.000 to +0.000, n = 3)"
    assert cells(time)["self_attention --steps 20000"][4].startswith("+0.900 (")


# Plots


@pytest.fixture
def two_rungs(log):
    return log(runs("bigram", 3.25, 2.75), runs("residual", 2.0, 2.1))


def test_a_rung_beside_the_ladder_has_a_panel_and_one_without_a_curve_has_none(log):
    path = log(runs("bigram", 2.5)[-1:], *(runs(rung, 1.5, 1.75) for rung in ("gpt", "rotary", "previous_token")))
    shown = load_results(Selection(path))
    *panels, ladder = plot_loss.draw(shown, Figure()).axes
    assert [panel.get_title() for panel in panels] == [
        f"{rung}\n1.625 ± 0.177" for rung in ("gpt", "rotary", "previous_token")
    ]
    assert [text.get_text() for text in ladder.texts] == ["2.500 (n = 1)"] + ["1.625 (n = 2)"] * 3
    assert [label.get_text() for label in ladder.get_yticklabels()] == shown.order and len(shown.order) == 4


def test_long_labels_leave_room_for_the_losses(log):
    flags = "--n-embd 32 --n-layer 1 --block-size 8 --learning-rate 0.001 --weight-decay 0.02"
    results = load_results(Selection(log(runs("pre_norm", 2.0), runs(f"pre_norm {flags}", 2.1)), variants=True))
    *_, ladder = plot_loss.draw(results, figure := Figure()).axes
    figure.savefig(io.BytesIO(), format="svg")  # makes the layout
    names = [label.get_window_extent() for label in ladder.get_yticklabels()]
    assert ladder.get_window_extent().width > figure.bbox.width / 4 and names[0].y0 > names[1].y1


@pytest.mark.parametrize("x", plot_loss.X)
def test_curves_are_means_over_seeds_against_the_chosen_x(x, two_rungs):
    shown = load_results(Selection(two_rungs))
    shown.rows["seconds"] = shown.rows["step"] * (2.0 + shown.rows["seed"])  # one seed slower than the other
    means = shown.rows[shown.rows["label"] == "bigram"].groupby("step")[[plot_loss.X[x], "val_loss"]].mean()
    bigram, residual, _ = plot_loss.draw(shown, Figure(), x).axes
    assert bigram.get_xlabel() == x
    (grey,) = (line for line in residual.get_lines() if line.get_color() == "0.6")
    curve = next(line for line in bigram.get_lines() if line.get_linewidth() == 2)
    for line in (curve, grey):
        assert np.allclose(line.get_xydata(), means)


def test_the_band_is_a_standard_deviation_and_the_bar_an_interval(two_rungs):
    bigram, _, ladder = plot_loss.draw(load_results(Selection(two_rungs)), Figure()).axes
    (band,) = (part.get_paths()[0].vertices for part in bigram.collections if isinstance(part, PolyCollection))
    at_end = band[band[:, 0] == band[:, 0].max(), 1]
    spread = np.std([3.25, 2.75], ddof=1)
    assert (at_end.min(), at_end.max()) == pytest.approx((3 - spread, 3 + spread))
    bars = [bar[2][0].get_segments()[0][:, 0] for bar in ladder.containers if isinstance(bar, ErrorbarContainer)]
    assert bars[0] == pytest.approx(stats.t.interval(0.95, 1, 3.0, stats.sem([3.25, 2.75])))


def test_a_seed_that_was_evaluated_at_other_steps_leaves_the_mean_curve_smooth(log):
    """Otherwise points of one seed would lie between means of all."""
    path = log(runs("residual", 2.0, 2.1), [row for row in runs("residual", 3.0, first=2) if row["step"] != 2500])
    (curve, *_), _ = (panel.get_lines() for panel in plot_loss.draw(load_results(Selection(path)), Figure()).axes)
    assert curve.get_xdata().tolist() == [0, 5000]


def test_a_scaled_up_rung_has_its_own_axes(two_rungs):
    shown = load_results(Selection(two_rungs))
    for factor in (1, 8):
        shown.rows.loc[shown.rows["label"] == "residual", "tokens"] *= factor
        bigram, residual, _ = plot_loss.draw(shown, Figure(), "characters").axes
        assert (bigram.get_ylim() == residual.get_ylim()) == (factor == 1)
        assert residual.get_xlim()[1] == factor * bigram.get_xlim()[1]
        assert residual.yaxis.get_tick_params()["labelleft"] == (factor > 1)  # or else bigram's panel has them


def test_only_the_named_rungs_are_drawn(two_rungs, tmp_path, command):
    picture, common = tmp_path / "pictures" / "curves.svg", ["--loss-csv", two_rungs, "--out"]
    printed = command(plot_loss, *common, picture, "--rungs", "residual", "--x", "seconds")
    assert printed == f"drew 2 runs of 1 rungs on tinyshakespeare: {picture}\n"
    assert picture.read_text(encoding="utf-8").count("<path") > 20
    for words, *args in (
        ("has no finished runs of 'gpt'; it has bigram, residual", picture, "--rungs", "gpt", "bigram", "residual"),
        ("there is no rung residul", picture, "--rungs", "residul"),
        ("does not end in a kind of picture", tmp_path / "curves.xyz"),
        ("choose another picture with --out", two_rungs / "curves.svg"),
    ):
        assert words in command(plot_loss, *common, *args, fails=True)


def test_each_selection_has_its_own_picture(tmp_path):
    selections = [{}, {"preset": "laptop"}, {"variants": True}, {"preset": "laptop", "variants": True, "holdout": True}]
    selections += [{"corpus": "my text.txt (1a2b3c)"}]
    names = [plot_loss.picture_of(Selection(**each)).name for each in selections]
    assert names[:2] == ["loss_curves.png", "loss_curves_laptop.png"] and len(set(names)) == 5
    assert plot_loss.picture_of(Selection(corpus="tinyshakespeare")).name == names[0]
    assert plot_loss.picture_of(Selection(tmp_path / "my.csv")) == tmp_path / "loss_curves_my.png"  # not the published


# Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, text_file):
    folder = tmp_path_factory.mktemp("runs")
    settings = {"steps": 1, "corpus": str(text_file), "device": "cpu", "sample_length": 0, "runs_dir": folder}
    train_rung(stages.residual.LanguageModel, config_of("residual", **settings, loss_csv=folder / "log.csv"))
    return find_checkpoint(folder, "residual")


def test_a_model_is_loaded_as_it_was_saved(checkpoint):
    loaded = load_model(checkpoint)
    model, config, tokenizer = loaded.model, loaded.config, loaded.tokenizer
    saved = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(weights, saved["weights"][name]) for name, weights in model.state_dict().items())
    assert isinstance(model, stages.residual.LanguageModel) and not model.training
    assert (config.steps, tokenizer.vocab_size) == (1, len(saved["metadata"]["alphabet"]))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("config", {"n_embd": 64}, "does not fit residual"),
        ("config", {"steps": "5_000"}, "does not fit residual"),
        ("config", {"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ("metadata", {"alphabet": "abc"}, "does not fit residual"),
        ("metadata", {"rung": "none"}, "the ladder does not name"),
        ("metadata", {"rung": "pre_norm"}, "does not fit pre_norm"),
        ("weights", {"\x1b[31m": torch.zeros(1)}, "does not fit residual"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_rung_is_a_one_line_error(part, change, words, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content[part] |= change
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "other.pt")
    assert words in str(error.value) and str(error.value).isprintable()


def test_the_checkpoint_of_a_finished_run_is_preferred_to_one_of_a_stopped_run(tmp_path):
    for age, name in enumerate(("gpt-seed1-a.partial.pt", "gpt-seed1-a.pt", "gpt-seed0-a.pt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (9 - age, 9 - age))
    assert find_checkpoint(tmp_path, "gpt") == find_checkpoint(tmp_path, "") == tmp_path / "gpt-seed1-a.pt"
