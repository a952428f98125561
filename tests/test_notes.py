"""notes.md: its form, its tables, its surprises, and the commands of each "Try it"."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, runs

from data import read_log
from helper_scripts import fill_notes
from helper_scripts.fill_notes import CHAPTERS, LETTERS, SIZES, lesson_diff, shape_table
from helper_scripts.models import RUNGS, rung_before, rung_module, rung_path
from helper_scripts.results import Selection, load_results
from stages.muon import newton_schulz
from training import run
from training.optimizers import make_optimizers
from training.update import apply_update, cross_entropy

PAGE = ROOT / "notes.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
OF_RUNG = {found[1]: section for section in SECTIONS if (found := re.search(r"<!-- result (\w+): begin -->", section))}
MARKED = r"<!-- {}: begin -->\n(.*?)\n?<!-- {}: end -->"


def marked(name: str) -> str:
    """The text between the two markers of that name."""
    return re.search(MARKED.format(name, name), TEXT, flags=re.DOTALL)[1]


# ----- the form


def test_each_rung_of_the_ladder_has_a_chapter():
    assert list(OF_RUNG) == list(CHAPTERS)
    assert [rung for rung in RUNGS if not hasattr(rung_module(rung), "AFTER")] == list(CHAPTERS)[:15]


@pytest.mark.parametrize("rung", CHAPTERS)
def test_a_chapter_has_all_its_parts_in_order(rung):
    parts = ("<!-- result", f"`{rung_path(rung).relative_to(ROOT).as_posix()}`.", "*In the lecture:*", "<!-- shapes")
    parts += ("$$" if rung != "bigram" else "$$p", "<!-- diff", "*Surprise:*", "*Try it:*", "```bash", "*Read on:*")
    places = [OF_RUNG[rung].index(part) for part in parts]
    assert places == sorted(places)
    own = re.sub(r"<!-- (\w+ \w+[\w ]*): begin -->.*?<!-- \1: end -->", "", OF_RUNG[rung], flags=re.DOTALL)
    assert len([line for line in own.splitlines() if line]) <= 45


def test_results_are_between_markers_alone():
    prose = re.sub(r"<!-- (.*?): begin -->.*?<!-- \1: end -->", "", TEXT, flags=re.DOTALL)
    assert set(re.findall(r"\d\.\d{3}\b", prose)) == {"4.174", "2.482"}  # ln 65, and the loss of counted pairs


def test_times_in_the_lecture_match_their_links():
    links = re.findall(r"\[(\d+):(\d\d):(\d\d)\]\(https://www\.youtube\.com/watch\?v=kCc8FmEb1nY&t=(\d+)s\)", TEXT)
    assert len(links) == len(re.findall(r"\d:\d\d:\d\d", TEXT)) > 20
    assert all(3600 * int(h) + 60 * int(m) + int(s) == int(seconds) for h, m, s, seconds in links)


def test_names_of_the_lecture_are_in_the_files_that_the_page_links_to():
    rows = re.findall(r"\| `(\w+)` in \[([\w/.]+)\]\(([\w/.]+)\)", TEXT)
    assert len(rows) >= 10
    for name, shown, path in rows:
        assert shown == path and re.search(rf"(def|class) {name}\b", (ROOT / path).read_text(encoding="utf-8")), name


def test_the_glossary_has_twenty_words():
    glossary = next(section for section in SECTIONS if section.startswith("Twenty words"))
    assert len([line for line in glossary.splitlines() if line.startswith("| ")]) == 1 + 20


# ----- what the command writes


@pytest.mark.parametrize("rung", CHAPTERS)
def test_the_diff_matches_the_files(rung):
    assert marked(f"diff {rung}") == lesson_diff(rung), "run python helper_scripts/fill_notes.py"
    if before := rung_before(rung, list(RUNGS)):
        git = ["git", "diff", "--no-index", "-U0", "--", str(rung_path(before)), str(rung_path(rung))]
        changed = subprocess.run(git, capture_output=True, encoding="utf-8").stdout.splitlines()
        shown = [line for line in marked(f"diff {rung}").splitlines() if re.match(r"[+-]\s*\S", line)]
        assert shown and not [line for line in shown if line not in changed]


@pytest.mark.parametrize("rung", CHAPTERS)
def test_the_shapes_match_a_batch(rung, shakespeare):
    assert marked(f"shapes {rung}") == shape_table(rung, shakespeare), "run python helper_scripts/fill_notes.py"


def test_the_shapes_match_those_by_hand():
    """32 x 8 characters, 32 channels, four heads of eight; 65 characters in the alphabet."""
    assert len(set(LETTERS)) == len(set(LETTERS.values())) and set(SIZES.values()) <= set(LETTERS)
    one, several = marked("shapes self_attention"), marked("shapes multi_head")
    assert "| `scores`, `weights` in `SelfAttention.forward` |  | (B, T, T) | (32, 8, 8) |" in one
    assert "| `lm_head` | (B, T, C) | (B, T, V) | (32, 8, 65) |" in one
    assert "| `q`, `k`, `v` in `SelfAttention.forward` |  | (B, H, T, D) | (32, 4, 8, 8) |" in several
    assert "| `scores`, `weights` in `SelfAttention.forward` |  | (B, H, T, T) | (32, 4, 8, 8) |" in several
    assert "(8, 128, 341)" in marked("shapes swiglu")  # 8/3 of 128 channels, rounded down


@pytest.fixture
def full_log(log):
    """Two seeds of each rung: rung r of the ladder at 3 - r / 10, plus and minus 0.01; gpt at its own size at 1."""
    parts = []
    for number, rung in enumerate(CHAPTERS):
        label = rung + (" --preset laptop" if number >= RUNGS.index("gpt") else "")
        parts.append(runs(label, 3 - number / 10 - 0.01, 3 - number / 10 + 0.01, parameters=1000 + number))
    return log(*parts, runs("gpt", 1.0, parameters=12345))


@pytest.fixture
def page(tmp_path) -> Path:
    return Path(shutil.copy(PAGE, tmp_path / "page.md"))


def test_the_command_writes_the_results_of_the_log(full_log, page, command, monkeypatch, shakespeare):
    monkeypatch.setattr(fill_notes, "shape_table", lambda rung, corpus: "shapes")  # other tests check them
    printed = command(fill_notes, "--page", page, "--loss-csv", full_log)
    assert f"filled {3 * len(CHAPTERS) + 1} places" in printed
    text = page.read_text(encoding="utf-8")
    first = "Loss: **3.000** ± 0.014 (n = 2). Parameters: 1,000."  # 0.02 / sqrt(2)
    second = (
        "Loss: **2.900** ± 0.014 (n = 2); change against `bigram`: -0.100 (-0.100 to -0.100, n = 2). Parameters: 1,001."
    )
    rotary = "Loss with `--preset laptop`: **2.200** ± 0.014 (n = 2); change against `gpt`: -0.100"
    for rung, line in (("bigram", first), ("self_attention", second), ("rotary", rotary)):
        assert f"<!-- result {rung}: begin -->\n{line}" in text
    assert "<!-- result gpt: begin -->\nLoss with `--preset laptop`: **2.300** ± 0.014 (n = 2). Parameters" in text
    large = "Loss: **1.000** (n = 1); change against `pre_norm`: -1.390 (n = 1). Parameters: 12,345."  # 1 - 2.39
    assert f"<!-- result gpt at full size: begin -->\n{large}\n" in text
    assert text.count("\nshapes\n") == len(CHAPTERS)
    command(fill_notes, "--page", page, "--loss-csv", full_log)
    assert page.read_text(encoding="utf-8") == text


def test_the_results_match_the_committed_log(tmp_path):
    """The log is the one in git, so that a new run of one's own does not fail the test."""
    git = ["git", "show", ":data/loss_gpt_pd.csv"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("not a git checkout")
    (tmp_path / "log.csv").write_text(done.stdout, encoding="utf-8", newline="\n")
    filled, _ = fill_notes.results(tmp_path / "log.csv")
    assert {name: marked(name) for name in filled} == filled, "run python helper_scripts/fill_notes.py"


def test_the_page_stays_unchanged_if_a_rung_has_no_runs(log, page, command):
    before = page.read_bytes()
    some = log(runs("bigram", 2.5), runs("gpt --preset laptop", 1.9))
    assert "self_attention" in command(fill_notes, "--page", page, "--loss-csv", some, fails=True)
    assert page.read_bytes() == before


# ----- surprises


def test_scores_at_the_start_are_larger_with_qk_norm():
    """Chapter 11: a standard deviation of about 1, not about 0.05."""

    def spread(rung: str) -> float:
        module = rung_module(rung)
        config = module.Config.from_preset("laptop")
        torch.manual_seed(0)
        attention = module.SelfAttention(config)
        torch.nn.init.normal_(attention.qkv.weight, std=0.02)
        x = torch.nn.functional.layer_norm(torch.randn(4, 128, config.n_embd), (config.n_embd,))
        found = []

        def look(frame, event, _):
            if event == "return" and frame.f_code is module.SelfAttention.forward.__code__:
                found.append(frame.f_locals["scores"].std().item())

        angles = module.rotary_angles(128, config.n_embd // config.n_head)
        sys.setprofile(look)
        attention(x, torch.zeros(128, 128), angles.cos(), angles.sin())
        sys.setprofile(None)
        return found[0]

    assert spread("qk_norm") == pytest.approx(1, abs=0.1)
    assert spread("rms_norm") == pytest.approx(0.05, abs=0.01)


def test_the_mean_that_layer_norm_subtracts_is_small(shakespeare):
    """Chapter 10: about 1% of the mean square, for an untrained model of rung 9."""
    module, shares = rung_module("rotary"), []
    config = module.Config.from_preset("laptop")
    torch.manual_seed(0)
    model = module.LanguageModel(65, config)
    for part in model.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.register_forward_hook(
                lambda _, inputs, output: shares.append(inputs[0].mean(-1).square().mean() / inputs[0].square().mean())
            )
    model(shakespeare.batch(0, 0, 8, 128)[0])
    assert len(shares) == 9 and all(share < 0.015 for share in shares)


def test_newton_schulz_does_not_converge():
    """Chapter 13: a singular value of 1 ends at about 0.70."""
    assert newton_schulz(torch.eye(1)[None]).item() == pytest.approx(0.70, abs=0.01)


def test_both_value_lambdas_of_the_first_block_stay_equal(small, corpus):
    """Chapter 14. Those of the second block do not."""
    module = rung_module("value_residual")
    config = small(module)
    torch.manual_seed(0)
    model = module.LanguageModel(corpus.tokenizer.vocab_size, config)
    optimizers = make_optimizers(model, config)
    for step in range(5):
        idx, targets = corpus.batch(0, step, 4, 8)
        model.zero_grad()
        cross_entropy(model(idx), targets).backward()
        apply_update(optimizers, 1e-2, torch.device("cpu"), "fp32")
    first, second = (block.attention.value_lambdas.tolist() for block in model.blocks[:2])
    assert first[0] == pytest.approx(first[1], abs=1e-6) and abs(first[0] - 0.5) > 1e-3
    assert abs(second[0] - second[1]) > 1e-5


@pytest.fixture(scope="module")
def losses(published_log):
    """The mean validation loss of a rung in the committed log after so many steps, by default at its end."""
    own, laptop = load_results(Selection(published_log)), load_results(Selection(published_log, preset="laptop"))

    def mean(rung: str, step: int | None = None) -> float:
        results = own if RUNGS.index(rung) < RUNGS.index("gpt") else laptop
        rows = results.rows[results.rows["label"] == rung]
        return rows[rows["step"] == (step or rows["steps"])]["val_loss"].mean()

    return mean


def test_surprises_of_the_small_rungs_hold_in_the_log(losses, published_log):
    drops = {b: losses(a) - losses(b) for a, b in itertools.pairwise(RUNGS[:7])}
    assert 0 < drops["self_attention"] < 0.1  # chapter 2
    assert max(drops, key=drops.get) == "multi_head"  # chapter 3
    labels = tuple(f"{rung} --learning-rate 0.01" for rung in ("residual", "post_norm", "pre_norm"))
    residual, *others = map(load_results(Selection(published_log, holdout=True), labels).losses, labels)  # chapter 6
    assert sorted(residual > 4) == [False, True] and all(other.max() < 2.2 for other in others)
    for rung in ("post_norm", "pre_norm"):  # "The experiment": both losses still fall, by more than they differ
        assert losses(rung, 4500) - losses(rung) > abs(losses("post_norm") - losses("pre_norm"))


def test_surprises_of_the_large_rungs_hold_in_the_log(losses):
    assert losses("gpt", 300) > losses("pre_norm", 1000)  # chapter 8: after 307,200 and 256,000 characters
    assert abs(losses("previous_token") - losses("rotary")) < (losses("gpt") - losses("rotary")) / 2  # chapter 9
    assert losses("swiglu", 300) > losses("qk_norm", 300)  # chapter 12
    assert abs(losses("swiglu") - losses("qk_norm")) < 0.01
    assert losses("modern") < losses("value_residual")  # chapter 15
    gains = [losses("gpt", step) - losses("previous_token", step) for step in (200, 400, 600, 800, 1000)]
    assert gains[0] == max(gains) and 0.35 < gains[-1] / gains[0] < 0.65
    early, end = (losses("modern", step) - losses("averaging", step) for step in (200, 1000))
    assert early > 0.02 and abs(end) < 0.005
    assert losses("distillation") < losses("modern")


# ----- try it


def try_it(rung: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """The commands of a chapter in order: a command, what it claims, and the diffs above it."""
    found, diffs = [], ()
    section = OF_RUNG[rung].partition("*Try it:*")[2].partition("*Read on:*")[0]
    for kind, content in re.findall(r"```(bash|diff)\n(.*?)```", section, flags=re.DOTALL):
        if kind == "diff":
            diffs += (content,)
            continue
        lines = content.splitlines()
        for line, claim in zip(lines[::2], lines[1::2], strict=True):
            assert claim.startswith("# ")
            found.append((line, claim.removeprefix("# "), diffs))
    return found


def changed(source: str, diff: str) -> str:
    """`source` with the line after "-" replaced by the line after "+"."""
    old, new = diff.splitlines()
    assert old[0] == "-" and new[0] == "+" and source.splitlines().count(old[1:]) == 1, diff
    return source.replace(f"{old[1:]}\n", f"{new[1:]}\n")


def start(command: str, diffs: tuple[str, ...], folder: Path, capsys, monkeypatch) -> dict:
    """Run a rung's command in this process, with the changes; returns its last row of the log, and its sample."""
    python, script, *args = shlex.split(command)
    assert python == "python" and len(diffs) < 2
    source = (ROOT / script).read_text(encoding="utf-8")
    for diff in diffs:
        source = changed(source, diff)
    path = folder / f"{len(list(folder.iterdir()))}" / Path(script).name  # a rung has the name of its file
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8", newline="\n")
    spec = importlib.util.spec_from_file_location(f"try_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    log = path.parent / "log.csv"
    args += ["--loss-csv", str(log), "--runs-dir", str(folder / "runs"), "--device", "cpu", "--threads", "1"]
    capsys.readouterr()
    run(module.LanguageModel, module.Config, args)
    sample = capsys.readouterr().out.partition("\n\n")[2].partition("\n\nvalidation loss")[0]
    return read_log(log).iloc[-1].to_dict() | {"sample": sample}


def repeats(text: str) -> bool:
    half = len(text) // 2
    return half > 65 and any(text[half:-period] == text[half + period :] for period in range(1, 66))


def check(claim: str, got: dict, before: dict | None) -> None:
    """Raises AssertionError if the result is not what the page claims."""
    seen = f"{claim}; seen: {got['val_loss']:.4f}, train {got['train_loss']:.4f}, {got['parameters']} parameters"
    if claim == "the sample repeats itself":
        assert repeats(got["sample"]), got["sample"]
    elif found := re.fullmatch(r"the same validation loss as before, within ([\d.]+)", claim):
        assert abs(got["val_loss"] - before["val_loss"]) < float(found[1]), seen
    elif found := re.fullmatch(r"a validation loss lower than before, by ([\d.]+) or more", claim):
        assert before["val_loss"] - got["val_loss"] >= float(found[1]), seen
    elif found := re.fullmatch(r"([\d,]+) parameters", claim):
        assert got["parameters"] == int(found[1].replace(",", "")), seen
    else:
        for part in claim.split(", "):
            which, side, bound = re.fullmatch(r"(train|validation) loss (below|above) ([\d.]+)", part).groups()
            loss = got["train_loss" if which == "train" else "val_loss"]
            assert loss < float(bound) if side == "below" else loss > float(bound), seen


@pytest.mark.parametrize("rung", CHAPTERS)
def test_the_claims_of_try_it_hold(rung, tmp_path, capsys, monkeypatch, shakespeare):
    monkeypatch.chdir(ROOT)  # where the page's commands are typed
    before = None
    assert try_it(rung)
    for command, claim, diffs in try_it(rung):
        got = start(command, diffs, tmp_path, capsys, monkeypatch)
        check(claim, got, before)
        before = got
