"""A mixture of models: the mean of their probabilities, for sampling and for its loss."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch

import bigram
import gpt
from data import load_corpus, read_log
from helper_scripts import mixture, sample
from helper_scripts.mixture import Mixture, measure
from helper_scripts.models import load_model
from helper_scripts.results import Selection, load_results
from stages import modern, pre_norm
from training import run
from training.generation import mix, stream

VOCAB = 65
PROMPT = torch.tensor([5, 3, 60])


def random_model(small, module, block_size, seed=0):
    """A model with random weights, in float64, and its block size."""
    torch.manual_seed(seed)
    model = module.LanguageModel(VOCAB, small(module, block_size=block_size)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model, block_size


def mean_by_hand(models, *windows):
    """Mean probabilities (V,) after the last id of each model's window, or of the one window for all."""
    windows = windows * len(models) if len(windows) == 1 else windows
    with torch.no_grad():
        each = [torch.softmax(model(ids[None]).double(), -1)[0, -1] for model, ids in zip(models, windows, strict=True)]
    return sum(each) / len(each)


def test_the_mixture_has_the_mean_of_the_probabilities(small):
    models = [random_model(small, module, size)[0] for module, size in ((gpt, 8), (modern, 16), (pre_norm, 8))]
    ids = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = Mixture(models)(ids)  # (2, 8, V)
        expected = sum(torch.softmax(model(ids), dim=-1) for model in models) / 3
    torch.testing.assert_close(mixed.exp(), expected, rtol=1e-12, atol=0)
    far = [torch.tensor([0.0, -1000.0]), torch.tensor([-3000.0, 0.0])]  # each has a probability that rounds to 0
    assert mix(far).tolist() == pytest.approx([-0.6931472, -0.6931472])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_k": 3, "temperature": 2.0}])
def test_temperature_and_top_k_apply_to_the_mixture(settings, small, monkeypatch):
    drawn, draw = [], torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **kwargs: drawn.append(p) or draw(p, *args, **kwargs))
    models = [random_model(small, module, 8) for module in (gpt, modern)]
    next(stream(models, PROMPT, **settings))
    expected = mean_by_hand([model for model, _ in models], PROMPT)
    expected[expected < expected.topk(settings.get("top_k", VOCAB)).values[-1]] = 0
    expected **= 1 / settings.get("temperature", 1.0)
    torch.testing.assert_close(drawn[0], expected / expected.sum(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("cached", [True, False])
def test_each_model_uses_its_own_context(cached, small):
    """The windows by hand: pre_norm's last 8 characters; gpt's 16, or their later half and what follows."""
    models = [random_model(small, pre_norm, 8), random_model(small, gpt, 16)]
    ids, start = PROMPT.tolist(), 0
    for new in itertools.islice(stream(models, PROMPT, temperature=0, cached=cached), 40):
        start += 8 if len(ids) - start > 16 else 0
        windows = torch.tensor(ids[-8:]), torch.tensor(ids[start:])
        assert new == mean_by_hand([model for model, _ in models], *windows).argmax(), len(ids)
        ids.append(new)
    assert len(set(ids)) > 3


@pytest.mark.parametrize(("others", "length"), [([gpt, pre_norm], 40), ([modern, gpt], 8 - len(PROMPT))])
def test_the_text_is_the_same_with_and_without_the_cache(others, length, small):
    """With modern over the first context alone, because its cache keeps its own window."""
    models = [
        random_model(small, gpt, 16),
        *(random_model(small, module, 8, seed) for seed, module in enumerate(others, start=1)),
    ]
    one, other = (
        list(itertools.islice(stream(models, PROMPT, generator=generator, cached=cached), length))
        for cached, generator in ((True, torch.Generator().manual_seed(2)), (False, torch.Generator().manual_seed(2)))
    )
    assert one == other and len(set(one)) > 2


def test_one_model_alone_is_sampled_without_a_change(small):
    """Compared with torch's softmax and multinomial, with the same seed. The logits are not rounded a second time."""
    model, _ = random_model(small, gpt, 64)
    ids, theirs = PROMPT.tolist(), torch.Generator().manual_seed(3)
    for _ in range(40):
        ids.append(int(torch.multinomial(mean_by_hand([model], torch.tensor(ids)), 1, generator=theirs)))
    new = stream([(model, 64)], PROMPT, generator=torch.Generator().manual_seed(3))
    assert list(itertools.islice(new, 40)) == ids[len(PROMPT) :]
    logits = torch.randn(3, VOCAB)
    assert torch.equal(mix([logits]), logits)


def test_the_loss_is_of_the_mean_probabilities_and_below_the_mean_of_the_losses(small):
    models = [random_model(small, module, 8, seed)[0] for seed, module in enumerate((gpt, gpt, modern))]
    ids = torch.randint(VOCAB, (22,), generator=torch.Generator().manual_seed(0))
    *alone, mixed = measure(models, ids, 8)
    windows = [(ids[i - i % 8 : i + 1], ids[i + 1]) for i in range(21)]  # what is seen, and the target
    expected = [-mean_by_hand(models, seen)[target].log() for seen, target in windows]
    assert mixed == pytest.approx(float(sum(expected)) / 21, rel=1e-9)
    for model, loss in zip(models, alone, strict=True):
        assert loss == pytest.approx(float(-sum(mean_by_hand([model], s)[t].log() for s, t in windows)) / 21, rel=1e-9)
    assert mixed < sum(alone) / 3 - 0.01
    assert measure(models[:1] * 2, ids, 8) == pytest.approx(alone[:1] * 3, rel=1e-9)  # a copy gains nothing


# The commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text, text_file):
    """Checkpoints, named after their differences, and the log of their runs."""
    folder = tmp_path_factory.mktemp("runs")
    texts = {"reversed": text[::-1], "upper": text.upper()}  # other texts, one with the same alphabet
    for name, content in texts.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    for name, module, *special in (
        ("bigram", bigram),
        ("gpt", gpt),
        ("gpt1", gpt, "--seed", "1"),
        ("holdout", gpt, "--holdout"),
        ("holdout1", gpt, "--holdout", "--seed", "1"),
        ("reversed", gpt, "--corpus", str(folder / "reversed.txt")),
        ("upper", gpt, "--corpus", str(folder / "upper.txt")),
    ):
        flags = ["--steps", "3", "--sample-length", "0", "--corpus", str(text_file), "--device", "cpu"]
        flags += ["--loss-csv", str(folder / "log.csv"), "--runs-dir", str(folder / name)]
        if module is gpt:
            flags += ["--n-embd", "12", "--n-layer", "1", "--block-size", "16", "--batch-size", "2"]
        run(module.LanguageModel, module.Config, [*flags, *special])
        (written,) = (folder / name).glob("*.pt")
        written.rename(folder / f"{name}.pt")
    return folder


@pytest.fixture
def output(folder, command):
    """What a command prints about some of these checkpoints."""

    def start(module, names, *flags, **how):
        return command(module, *(folder / f"{name}.pt" for name in names), *flags, "--device", "cpu", **how)

    return start


def test_sample_generates_from_a_mixture(output):
    flags = ["--prompt", "to be", "--length", "60", "--temperature", "0.9"]
    text = output(sample, ["gpt", "gpt1"], *flags)
    assert text.startswith("to be") and len(text) == 5 + 60 + 1
    assert text == output(sample, ["gpt1", "gpt"], *flags) == output(sample, ["gpt", "gpt1"], *flags, "--no-cached")
    assert len({text, output(sample, ["gpt"], *flags), output(sample, ["gpt1"], *flags)}) == 3
    assert len(output(sample, ["bigram", "gpt"], *flags)) == len(text)


@pytest.mark.parametrize(("names", "holdout"), [(["gpt", "gpt1"], False), (["holdout", "holdout1"], True)])
def test_a_mixture_is_evaluated_on_the_split_of_its_models(names, holdout, folder, text_file, output):
    header, *lines = output(mixture, names).splitlines()
    corpus, log = load_corpus(str(text_file), holdout), read_log(folder / "log.csv").groupby("run").last()
    where = "held-out end of the train split" if holdout else "validation split"
    assert f"{corpus.sha256[:12]}, {where}: {len(corpus.val):,} characters in windows of 16, fp32 on cpu" in header
    runs = [torch.load(folder / f"{name}.pt", weights_only=True)["metadata"]["run"] for name in names]
    for line, name in zip(lines, runs, strict=False):
        row = log.loc[name]
        assert line == f"loss {row['val_loss']:.4f}, {row['parameters']:,} parameters: {name}"
    models = [load_model(folder / f"{name}.pt").model for name in names]
    *alone, mixed = measure(models, corpus.val, 16)
    assert mixed < sum(alone) / 2
    size = sum(log.loc[runs, "parameters"])
    assert lines[2:] == [f"loss {mixed:.4f}, {size:,} parameters: mixture of {', '.join(runs)}"]


def test_a_mixture_is_logged_as_its_own_row(folder, output, tmp_path):
    path, selection = tmp_path / "log.csv", Selection(tmp_path / "log.csv", corpus="words.txt", variants=True)
    path.write_bytes((folder / "log.csv").read_bytes())
    ladder = load_results(selection)
    printed = output(mixture, ["gpt", "gpt1"], "--loss-csv", path)
    row, runs = read_log(path).iloc[-1], read_log(path).groupby("run").last()
    names = [torch.load(folder / f"{name}.pt", weights_only=True)["metadata"]["run"] for name in ("gpt", "gpt1")]
    assert row["rung"] == "mixture" and row["flags"].split() == names
    assert f"loss {row['val_loss']:.4f}, {row['parameters']:,} parameters: mixture" in printed
    for column in ("steps", "tokens", "parameters"):
        assert row[column] == runs.loc[names, column].sum()
    assert row["train_loss"] < runs.loc[names, "train_loss"].mean()
    pd.testing.assert_frame_equal(load_results(selection).rows, ladder.rows)  # tables and plots do not change


def test_a_mixture_of_an_unfinished_run_is_not_logged(folder, command, tmp_path):
    content = torch.load(folder / "gpt1.pt", weights_only=True)
    content["metadata"]["steps"] += 1
    content["optimizers"] = []
    torch.save(content, tmp_path / "stopped.pt")
    models, flags = (
        (folder / "gpt.pt", tmp_path / "stopped.pt"),
        ("--device", "cpu", "--loss-csv", tmp_path / "log.csv"),
    )
    assert "unfinished run" in command(mixture, *models, *flags, fails=True)
    assert not (tmp_path / "log.csv").exists()


def test_models_with_different_contexts_are_evaluated_in_the_smallest(output):
    assert "in windows of 8," in output(mixture, ["gpt", "bigram"])


@pytest.mark.parametrize(
    ("module", "names", "flags", "words"),
    [
        (sample, ["gpt", "upper"], [], "gpt.pt and {folder}/upper.pt have different vocabularies"),
        (sample, ["gpt", "gpt1", "gpt"], [], "gpt.pt is named twice"),
        (mixture, ["gpt", "upper"], [], "gpt.pt and {folder}/upper.pt have different vocabularies"),
        (
            mixture,
            ["gpt", "reversed"],
            [],
            "gpt.pt and {folder}/reversed.pt were trained on different texts: words.txt",
        ),
        (mixture, ["gpt", "holdout"], [], "holdout.pt was trained with --holdout, {folder}/gpt.pt without"),
        (mixture, ["gpt", "gpt1"], ["--corpus", "{folder}/reversed.txt"], "not on reversed.txt"),
        (mixture, ["gpt"], [], "name two models or more"),
    ],
)
def test_an_impossible_mixture_is_a_one_line_error(module, names, flags, words, folder, output):
    flags = [flag.format(folder=folder) for flag in flags]
    printed = output(module, names, *flags, fails=True).replace("\\", "/")  # Windows's paths
    assert words.format(folder=folder.as_posix()) in printed
