"""The hooks of a rung beside its forward pass: averaged weights, and a loss against teachers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rung_id as name

from data import UserError, load_corpus, read_log
from helper_scripts import run_ladder
from stages import averaging, distillation, modern
from training import train_rung
from training.checkpoint import checkpoint_path, load_checkpoint
from training.evaluate import exact_loss
from training.loop import train
from training.run import build_model
from training.state import State

STEPS = 12


def weights_of(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def trained(module, corpus, config) -> tuple[torch.nn.Module, list[list[torch.Tensor]], list]:
    """The model, its weights after each update, and the evaluations."""
    model, weights = build_model(module.LanguageModel, corpus, config), []

    def steps():
        for step in range(config.steps):
            yield step
            weights.append(weights_of(model))

    return model, weights, list(train(State.at_start(model, config), corpus, config, "fp32", steps()))


def test_evaluations_use_averaged_weights_and_training_does_not(corpus, small):
    settings = {"steps": STEPS, "eval_interval": STEPS, "learning_rate": 0.01}
    plain, weights, _ = trained(modern, corpus, small(modern, **settings))
    model, same, (_, last) = trained(averaging, corpus, small(averaging, **settings))
    for one, two in zip(weights, same, strict=True):
        assert all(map(torch.equal, one, two))

    shares = [math.comb(k + 8, 9) for k in range(1, STEPS + 1)]  # about k to the ninth power
    means = [sum(s * w.double() for s, w in zip(shares, each, strict=True)) / sum(shares) for each in zip(*weights)]  # noqa: B905
    for parameter, mean in zip(model.eval().parameters(), means, strict=True):
        torch.testing.assert_close(parameter.detach(), mean.float(), rtol=1e-5, atol=1e-6)
    for parameter, mean in zip(plain.parameters(), means, strict=True):
        parameter.data.copy_(mean)
    assert last.val_loss == pytest.approx(exact_loss(plain, corpus.val, 8), abs=1e-6)
    assert all(map(torch.equal, weights_of(model.train()), weights[-1]))


@pytest.fixture
def places(tmp_path, text_file) -> dict:
    return {"corpus": str(text_file), "loss_csv": tmp_path / "log.csv", "runs_dir": tmp_path, "sample_length": 0}


@pytest.fixture
def teacher(small, places):
    """The checkpoint of a trained modern rung, and its settings."""
    config = small(modern, steps=STEPS, eval_interval=STEPS, learning_rate=0.01, device="cpu", **places)
    train_rung(modern.LanguageModel, config)
    return checkpoint_path("modern", config, load_corpus(config.corpus).sha256), config


def student(config, **given) -> distillation.Config:
    return distillation.Config(**{**vars(config), **given})


def test_the_loss_is_against_the_text_and_one_teachers_probabilities(teacher, places):
    path, config = teacher
    train_rung(modern.LanguageModel, replace(config, seed=1))
    other = path.with_name(path.name.replace("seed0", "seed1"))
    corpus = load_corpus(config.corpus)
    share = 0.3
    model = build_model(
        distillation.LanguageModel, corpus, student(config, teachers=(path, other), teacher_share=share, seed=5)
    )
    idx, targets = corpus.batch(0, 0, 4, 8)
    with torch.no_grad():
        ours = {round(model.loss(model(idx), targets, idx).item(), 6) for _ in range(40)}

    def log_probabilities(model):
        logits = model.eval()(idx).detach().double().numpy()
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    plain = modern.LanguageModel(corpus.tokenizer.vocab_size, config)
    expected = []
    for file in (path, other):
        plain.load_state_dict(load_checkpoint(file)["weights"])
        expected.append(np.exp(log_probabilities(plain)))
    plain.load_state_dict(model.state_dict())  # the teachers are not in the student's weights
    found = log_probabilities(plain)
    from_text = -np.take_along_axis(found, targets.numpy()[..., None], axis=-1).mean()
    from_teachers = [-(each * found).sum(axis=-1).mean() for each in expected]
    assert sorted(ours) == pytest.approx(sorted((1 - share) * from_text + share * t for t in from_teachers), abs=1e-5)
    assert min(abs(from_text - t) for t in from_teachers) > 1e-3


def test_only_a_teacher_share_of_zero_gives_the_run_of_modern(teacher, places):
    path, config = teacher
    corpus = load_corpus(config.corpus)
    plain, _, losses = trained(modern, corpus, config)
    for share, equal in ((0.0, True), (0.5, False)):
        model, _, theirs = trained(distillation, corpus, student(config, teachers=(path,), teacher_share=share))
        assert all(map(torch.equal, weights_of(model), weights_of(plain))) is equal
        assert ([each.val_loss for each in theirs] == [each.val_loss for each in losses]) is equal


def test_teachers_are_found_by_settings_and_seed_and_are_logged_without_the_seed(teacher, places):
    path, config = teacher
    named = train_rung(distillation.LanguageModel, student(config, teachers=(path,)))
    found = train_rung(distillation.LanguageModel, student(config))
    assert found.val_loss == named.val_loss
    seeds = read_log(config.loss_csv).query("rung == 'distillation' and step > 0")["flags"]
    assert f"--teachers modern-{path.stem.split('-', 2)[2]}" in seeds.iloc[0]  # without the seed, so that seeds average
    assert "--teachers" not in seeds.iloc[1]


def test_an_unusable_teacher_is_an_error(teacher, places, tmp_path):
    path, config = teacher
    with pytest.raises(UserError, match=r"first run python stages/modern.py .*--seed 7.* --teachers"):
        train_rung(distillation.LanguageModel, student(config, seed=7))
    with pytest.raises(UserError, match=r"--preset laptop .*--learning-rate 0\.003 "):  # not the preset's for modern
        train_rung(distillation.LanguageModel, student(config, preset="laptop", learning_rate=0.003))
    with pytest.raises(UserError, match="with --minutes there is no default teacher"):
        train_rung(distillation.LanguageModel, student(config, minutes=1))
    with pytest.raises(UserError, match="--teacher-share is 80; it has to be between 0 and 1"):
        student(config, teacher_share=80)
    with pytest.raises(UserError, match="another text or split"):  # the teacher was trained on the held-out part
        train_rung(distillation.LanguageModel, student(config, teachers=(path,), holdout=True))
    averaged = replace(config, seed=3)
    train_rung(averaging.LanguageModel, averaging.Config(**vars(averaged)))
    (file,) = tmp_path.glob("averaging-seed3-*.pt")
    with pytest.raises(UserError, match="not a model of this architecture"):
        train_rung(distillation.LanguageModel, student(config, teachers=(file,)))
    with pytest.raises(UserError, match="use --block-size 8"):
        train_rung(distillation.LanguageModel, student(config, teachers=(path,), block_size=9))
    content = torch.load(path, weights_only=True)
    torch.save(content | {"step": content["step"] - 1}, tmp_path / "stopped.pt")
    with pytest.raises(UserError, match="has not finished"):
        train_rung(distillation.LanguageModel, student(config, teachers=(tmp_path / "stopped.pt",)))
    content["metadata"]["rung_code"] = "earlier"  # the default teacher has to be of the present code
    torch.save(content, path)
    with pytest.raises(UserError, match="there is no teacher; first run"):
        train_rung(distillation.LanguageModel, student(config))


def test_run_ladder_trains_a_missing_teacher_first(tmp_path, text_file, command):
    rung = "distillation --n-embd 32 --n-layer 1 --block-size 8"
    words = [rung, f"{rung} --teacher-share 0.3", "--preset", "laptop", "--steps", "4", "--corpus"]
    words += [text_file, "--device", "cpu", "--loss-csv", tmp_path / "log.csv", "--runs-dir", tmp_path]
    printed = command(run_ladder, *words, "--out", tmp_path / "curves.svg")
    log = read_log(tmp_path / "log.csv")
    assert list(log["rung"].unique()) == ["modern", "distillation"] and log["run"].nunique() == 3
    teachers = log[log["rung"] == "modern"]["flags"]
    assert set(teachers) == {"--preset laptop --steps 4 --block-size 8 --n-embd 32 --n-layer 1"}  # as typed
    assert "| `distillation" in printed and "are in the log already" not in printed


@pytest.mark.parametrize("module", [averaging, distillation], ids=name)
def test_a_resumed_run_ends_with_the_same_weights(module, teacher, places, tmp_path):
    """A resumed run reads everything from the checkpoint, averages and teachers included."""
    path, config = teacher
    given = {"teachers": (path,)} if module is distillation else {}
    config = module.Config(**{**vars(config), **given, "eval_interval": 5})
    whole = train_rung(module.LanguageModel, config)
    there = tmp_path / "stopped"
    config = replace(config, runs_dir=there)

    class Stop(Exception):
        pass

    def stop(done):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        train_rung(module.LanguageModel, config, stop)
    assert train_rung(module.LanguageModel, replace(config, resume=True)).val_loss == whole.val_loss
    one, two = (load_checkpoint(next(folder.glob(f"{name(module)}-*.pt"))) for folder in (tmp_path, there))
    assert one["weights"].keys() == two["weights"].keys()
    assert all(torch.equal(tensor, two["weights"][key]) for key, tensor in one["weights"].items())
