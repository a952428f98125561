"""The loop, the exact loss, sampling, and what a finished run leaves on disk."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

import bigram
import gpt
from data import LOSS_CSV, UserError, read_log
from helper_scripts.models import config_of, rungs_of
from helper_scripts.results import NOW_TYPED, load_results
from stages import pre_norm, self_attention
from training import TrainConfig
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import changed_flags, fingerprint
from training.device import choose_device, choose_precision
from training.evaluate import exact_loss
from training.loop import learning_rate, train
from training.sampling import sample
from training.state import Evaluation, State


def trained(rung, corpus, config):
    torch.manual_seed(config.seed)
    model = rung.LanguageModel(corpus.tokenizer.vocab_size, config)
    return model, list(train(State.at_start(model, config), corpus, config, "fp32", range(config.steps)))


def state_of(model, config) -> State:
    return State(model, model, torch.optim.AdamW(model.parameters()), config.steps, 1.5, [Evaluation(3, 2.0, 2.5, 1.0)])


def facts_of(config, **more) -> dict:
    """What a run knows about itself, as a checkpoint has to hold it."""
    facts = {"run": "a run", "experiment": "rung", "seed": 0, "steps": config.steps, "parameters": 1, "device": "cpu"}
    facts |= {"precision": "fp32", "corpus_sha256": "0", "commit": "0", "torch": "2", "alphabet": "ab", "threads": 1}
    return facts | more


@pytest.mark.parametrize("n", [9, 10, 16, 17, 18, 100])  # a window exactly, one more, one less, and many
def test_the_exact_loss_is_the_sum_by_hand(corpus, small, n):
    model = pre_norm.LanguageModel(corpus.tokenizer.vocab_size, small(pre_norm))
    ids, block_size = corpus.val[:n], 8
    total = 0.0
    for target in range(1, n):
        start = (target - 1) // block_size * block_size  # of the window that predicts this character
        logits = model(ids[start:target].long()[None])[0, -1].double()
        total += (logits.exp().sum().log() - logits[ids[target].long()]).item()
    assert exact_loss(model, ids, block_size) == pytest.approx(total / (n - 1), abs=1e-6)


def test_the_exact_loss_does_not_depend_on_how_much_is_done_at_once(corpus, small, monkeypatch):
    model = pre_norm.LanguageModel(corpus.tokenizer.vocab_size, small(pre_norm))
    whole = exact_loss(model, corpus.val, 8)
    monkeypatch.setattr("training.evaluate.TOKENS_AT_ONCE", 24)
    assert exact_loss(model, corpus.val, 8) == pytest.approx(whole, abs=1e-7)


def test_the_exact_loss_is_free_of_dropout_and_leaves_training_on(corpus, small):
    model = gpt.LanguageModel(corpus.tokenizer.vocab_size, small(gpt, dropout=0.5)).train()
    assert exact_loss(model, corpus.val, 8) == exact_loss(model, corpus.val, 8)
    assert model.training


def test_training_lowers_the_loss(rung, corpus, small):
    _, evaluations = trained(rung, corpus, small(rung, steps=60, learning_rate=1e-2))
    assert evaluations[-1].val_loss < evaluations[0].val_loss - 0.3


def test_evaluations_come_when_they_are_due(corpus, small):
    _, evaluations = trained(bigram, corpus, small(bigram, steps=25, eval_interval=10))
    assert [evaluation.step for evaluation in evaluations] == [0, 10, 20, 25]
    assert [e.step for e in trained(bigram, corpus, small(bigram, steps=0))[1]] == [0]


def test_evaluating_more_often_changes_nothing(corpus, small):
    often = small(gpt, steps=12, eval_interval=2, dropout=0.3)
    model, evaluations = trained(gpt, corpus, often)
    other, others = trained(gpt, corpus, dataclasses.replace(often, eval_interval=100))
    assert evaluations[-1].val_loss == others[-1].val_loss
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("without_replacement", [False, True])
def test_the_loop_is_adamw_on_the_batches_in_order(without_replacement, corpus, small):
    config = small(
        self_attention, steps=5, weight_decay=0.1, learning_rate=1e-2, without_replacement=without_replacement
    )
    model, _ = trained(self_attention, corpus, config)
    torch.manual_seed(config.seed)
    other = self_attention.LanguageModel(corpus.tokenizer.vocab_size, config)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    for step in range(5):
        idx, targets = corpus.batch(config.seed, step, config.batch_size, config.block_size, without_replacement)
        log_probabilities = other(idx).log_softmax(dim=-1)
        optimizer.zero_grad()
        (-log_probabilities.gather(-1, targets[..., None]).mean()).backward()
        optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_batch_in_parts_is_the_whole_batch(corpus, small, monkeypatch):
    config = small(gpt, steps=5, batch_size=7)
    whole, _ = trained(gpt, corpus, config)
    seen = set()
    monkeypatch.setattr("training.device.CPU_TOKENS_AT_ONCE", 3 * config.block_size)
    monkeypatch.setattr(gpt.LanguageModel, "forward", remembering(gpt.LanguageModel.forward, seen))
    parts, _ = trained(gpt, corpus, config)
    assert {3, 1} <= seen and 7 not in seen  # 7 sequences as 3, 3 and 1, each with its share of the mean
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def remembering(forward, seen):
    def remember(model, idx):
        if model.training:
            seen.add(len(idx))
        return forward(model, idx)

    return remember


def test_the_learning_rate_rises_and_falls():
    level = TrainConfig(steps=100, learning_rate=0.5)
    assert {learning_rate(step, level) for step in range(100)} == {0.5}
    shaped = TrainConfig(steps=100, learning_rate=1.0, warmup_steps=9, decay=True)
    rates = [learning_rate(step, shaped) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[9:] == pytest.approx([(100 - step) / 91 for step in range(9, 100)], abs=0.02)
    assert max(rates) <= 1 and 0 < rates[-1] < 0.02
    short = TrainConfig(steps=50, learning_rate=1.0, warmup_steps=100, decay=True)  # warms up for 5 steps, not 100
    assert learning_rate(5, short) == 1.0
    assert learning_rate(49, short) == pytest.approx(1 / 45)


class Fixed(nn.Module):
    """A model that always predicts the same probabilities, and remembers the shapes it saw."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.shapes = set()

    def forward(self, idx):
        self.shapes.add(tuple(idx.shape))
        return self.logits.expand(*idx.shape, -1)


def frequencies(length=4000, **settings):
    model = Fixed([0.5, 0.3, 0.2])
    start = torch.zeros(1, dtype=torch.long)
    ids = sample(model, start, length, 8, generator=torch.Generator().manual_seed(0), **settings)
    assert ids.shape == (length + 1,)
    return (torch.bincount(ids[1:], minlength=3) / length).tolist()


def test_samples_follow_the_probabilities():
    assert frequencies() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    squared = [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]
    assert frequencies(temperature=0.5) == pytest.approx(squared, abs=0.03)
    assert frequencies(top_k=2) == pytest.approx([0.625, 0.375, 0], abs=0.03)
    assert frequencies(top_k=50) == frequencies()
    assert frequencies(temperature=0) == frequencies(top_k=1) == [1, 0, 0]
    assert frequencies(length=50, temperature=1e-30) == [1, 0, 0]


@pytest.mark.parametrize("prompt", [1, 5, 8, 20])
def test_sampling_keeps_to_one_shape_and_to_the_prompt(prompt):
    model = Fixed([0.5, 0.5])
    start = torch.ones(prompt, dtype=torch.long)
    ids = sample(model, start, 15, 8)
    assert model.shapes == {(1, 8)}
    assert torch.equal(ids[:prompt], start)


def test_sampling_sees_the_whole_context_and_no_filling(corpus, small):
    model = pre_norm.LanguageModel(corpus.tokenizer.vocab_size, small(pre_norm)).eval()
    ids = sample(model, corpus.val[:3].long(), 20, 8, temperature=0)
    for end in range(3, 23):
        seen = ids[max(0, end - 8) : end]
        assert ids[end] == model(seen[None])[0, -1].argmax()


def test_a_checkpoint_brings_the_model_back(rung, corpus, small, tmp_path):
    config = small(rung, steps=3)
    model, _ = trained(rung, corpus, config)
    path = tmp_path / "runs" / "model.pt"
    save_checkpoint(path, state_of(model, config), config, facts_of(config, alphabet="".join(corpus.tokenizer.chars)))
    content = load_checkpoint(path)
    other = rung.LanguageModel(corpus.tokenizer.vocab_size, config)
    other.load_state_dict(content["weights"])
    idx = corpus.val[:8].long()[None]
    assert torch.equal(other.eval()(idx), model.eval()(idx))
    assert content["config"]["block_size"] == config.block_size
    assert content["facts"]["alphabet"] == "".join(corpus.tokenizer.chars)
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


class Bomb:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save({"weights": {}, "config": Bomb()}, tmp_path / "bomb2.pt")
    for file in (path, tmp_path / "bomb2.pt"):
        with pytest.raises(UserError, match="not a checkpoint"):
            load_checkpoint(file)
    assert "this ran" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_refused(corpus, small, tmp_path):
    config = small(pre_norm)
    path = tmp_path / "model.pt"
    save_checkpoint(path, state_of(pre_norm.LanguageModel(30, config), config), config, facts_of(config))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_failed_write_leaves_the_old_checkpoint(small, tmp_path, monkeypatch):
    config = small(pre_norm)
    path = tmp_path / "model.pt"
    state = state_of(pre_norm.LanguageModel(30, config), config)
    save_checkpoint(path, state, config, facts_of(config))
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, state, config, facts_of(config))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_the_fingerprint_is_of_what_shapes_the_result(tmp_path):
    config = pre_norm.Config()
    free = {"seed": 9, "eval_interval": 7, "device": "cpu", "loss_csv": tmp_path, "prompt": "x", "precision": "fp32"}
    assert fingerprint(dataclasses.replace(config, **free)) == fingerprint(config)
    for change in ({"steps": 9}, {"n_head": 2}, {"learning_rate": 0.5}, {"decay": True}, {"block_size": 9}):
        assert fingerprint(dataclasses.replace(config, **change)) != fingerprint(config)


def test_rows_from_before_a_setting_was_there_remain_comparable():
    rows = read_log(LOSS_CSV)
    logged = rows.loc[(rows["commit"] == "80bfe8e1") & (rows["flags"] == "--recipe quick"), "config"]
    assert set(logged) == {fingerprint(config_of("modern --recipe quick", seed=0))}
    assert fingerprint(config_of("modern --recipe quick --without-replacement", seed=0)) not in set(logged)


def test_rows_whose_settings_now_take_other_flags_are_of_those_settings():
    for (_, config), flags in NOW_TYPED.items():
        assert {fingerprint(config_of(f"{rung} {flags}", seed=0)) for rung in ("gpt", "modern")} == {config}
    short = load_results(LOSS_CSV, budget="short")
    assert {rung.split()[0] for rung in short.order} == {rung.split()[0] for rung in rungs_of("short")}


def test_changed_flags_are_as_typed():
    assert changed_flags(gpt.Config(seed=4)) == ""
    assert changed_flags(gpt.Config(steps=7, decay=False, n_head=2)) == "--steps 7 --no-decay --n-head 2"
    assert changed_flags(pre_norm.Config(without_replacement=True)) == "--without-replacement"
    assert changed_flags(gpt.Config(without_replacement=False)) == "--no-without-replacement"
    for label in ("gpt --recipe lecture", "gpt --recipe lecture --steps 7 --dropout 0.0", "residual --n-layer 1"):
        assert f"{label.split()[0]} {changed_flags(config_of(label, seed=3))}" == label


def test_devices_that_are_there_and_not(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda"
    for name in ("cuda:1", "cuda:x", "cuda:", "cpu:", "tpu", ""):
        with pytest.raises(UserError, match="use --device"):
            choose_device(name)


def test_precision_of_small_models_and_of_mps_is_full():
    assert choose_precision("auto", torch.device("cpu"), 40_000) == "fp32"
    assert choose_precision("auto", torch.device("mps"), 10_000_000) == "fp32"
    assert choose_precision("bf16", torch.device("cpu"), 40_000) == "bf16"
    assert choose_precision("auto", torch.device("cpu"), 10_000_000) in ("fp32", "bf16")


@pytest.mark.parametrize("fastest", ["fp32", "bf16"])
def test_auto_takes_the_faster_precision(fastest, monkeypatch):
    monkeypatch.setattr("training.device._seconds_of_a_product", lambda name: 1.0 if name == fastest else 2.0)
    assert choose_precision("auto", torch.device("cpu"), 10_000_000) == fastest


def test_bf16_trains_and_logs_in_full_precision(corpus, small):
    config = small(gpt, steps=30, learning_rate=1e-2)
    torch.manual_seed(config.seed)
    model = gpt.LanguageModel(corpus.tokenizer.vocab_size, config)
    first, *_, last = train(State.at_start(model, config), corpus, config, "bf16", range(config.steps))
    _, (*_, precise) = trained(gpt, corpus, config)
    assert last.val_loss != precise.val_loss  # it did round
    assert last.val_loss == pytest.approx(precise.val_loss, abs=0.03)
    assert last.val_loss < first.val_loss - 0.3
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
