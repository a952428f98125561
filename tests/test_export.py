"""A rung as a Hugging Face model: transformers computes the same, and the folder is written safely."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODULES, ROOT, rung_id

from data import read_log
from helper_scripts import export
from helper_scripts.models import load_model
from helper_scripts.stock import ARCHITECTURES
from training import run
from training.generation import generate

# Characters that a tokenizer might strip, split, merge, normalise or treat as special tokens.
AWKWARD = "\n\r\t\0  \u00a0\u200b\u2581\u0120'\"\\#[]<|>e\u0301\u00e9\ufb01\u4e2d\U0001f3ad\u00df"
LENGTH = 200  # characters to generate


@pytest.fixture(scope="module")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"  # the folder has all that is needed
    library = pytest.importorskip("transformers", reason="transformers is not installed (requirements-dev.txt)")
    library.logging.disable_progress_bar()
    return library


@pytest.fixture(scope="module")
def exported(text, tmp_path_factory):
    """Trains a small checkpoint of a rung and exports it, each once; returns the checkpoint and the folder."""
    folder, made = tmp_path_factory.mktemp("export"), {}
    (folder / "text.txt").write_text(text + AWKWARD + text, encoding="utf-8", newline="")

    def make(rung: str, block_size: int = LENGTH + 8) -> tuple[Path, Path]:
        if (rung, block_size) not in made:
            (module,) = (module for module in MODULES if rung_id(module) == rung)
            runs_dir, out = folder / f"{rung}-{block_size}", folder / f"{rung}-{block_size}-out"
            flags = ["--steps", "40", "--warmup-steps", "0", "--learning-rate", "1e-2", "--batch-size", "2"]
            flags += ["--n-embd", "32", "--n-head", "4", "--n-layer", "2", "--block-size", str(block_size)]
            flags += ["--corpus", str(folder / "text.txt"), "--device", "cpu", "--sample-length", "0"]
            flags += ["--loss-csv", str(folder / "log.csv"), "--runs-dir", str(runs_dir)]
            run(module.LanguageModel, module.Config, flags)
            (checkpoint,) = runs_dir.glob("*.pt")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["export.py", str(checkpoint), "--out", str(out)])
                export.main()
            made[rung, block_size] = checkpoint, out
        return made[rung, block_size]

    return make


def greedy(trained, stock) -> tuple[str, str]:
    """Greedy text by the rung and by transformers, after the same prompt."""
    prompt = trained.tokenizer.encode("to be").long()
    ours = generate(trained.model, prompt, LENGTH, trained.config.block_size, temperature=0)
    theirs = stock.generate(prompt[None], max_length=len(prompt) + LENGTH, do_sample=False)[0]
    return trained.tokenizer.decode(ours), trained.tokenizer.decode(theirs)


@pytest.mark.parametrize("rung", {id(each): rung for rung, each in ARCHITECTURES.items()}.values())  # each once
def test_transformers_computes_the_rungs_logits_and_text(rung, exported, transformers):
    checkpoint, folder = exported(rung)
    trained = load_model(checkpoint)
    stock, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())  # no weight is missing, and none is unused
    for name, bias in trained.model.named_parameters():
        assert bias.abs().max() > 0.01, name  # trained, so that a weight which was not copied would show
    idx = torch.randint(trained.tokenizer.vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stock(idx).logits, trained.model(idx), atol=1e-4, rtol=0)
    ours, theirs = greedy(trained, stock)
    assert ours == theirs
    assert len(set(ours)) > 5


@pytest.mark.parametrize("rung", ["rotary", "swiglu"])
def test_past_the_context_transformers_uses_the_same_window(rung, exported, transformers):
    checkpoint, folder = exported(rung, block_size=32)
    ours, theirs = greedy(load_model(checkpoint), transformers.AutoModelForCausalLM.from_pretrained(folder))
    assert ours == theirs


def test_the_tokenizer_makes_every_character_a_token_and_changes_nothing(exported, transformers):
    checkpoint, folder = exported("gpt")
    ours, theirs = load_model(checkpoint).tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    alphabet = "".join(ours.chars)
    assert set(AWKWARD) < set(alphabet)
    for text in (*alphabet, alphabet, alphabet[::-1], AWKWARD, "  to be \r\n\n 's  ", "   ", ""):
        encoded = theirs(text)
        assert encoded.keys() == {"input_ids", "attention_mask"}
        assert encoded["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(encoded["input_ids"]) == text
    with pytest.raises(Exception, match=r"Missing \[UNK\] token"):  # as the model card says
        theirs("to be \u20ac")


def test_the_model_cards_code_generates_without_the_project(exported, transformers, tmp_path):
    _, folder = exported("swiglu")
    (lines,) = re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    parts = ("data", "training", "stages", "helper_scripts", "gpt")
    code = f"import sys\nsys.modules.update(dict.fromkeys({parts}))\n" + lines.replace("FOLDER", folder.as_posix())
    code = code.replace("print(", "print(len(") + ")"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == str(LENGTH + 8), done.stderr  # text up to the context length


def test_the_model_card_names_the_run(exported):
    checkpoint, folder = exported("gpt")
    card = (folder / "README.md").read_text(encoding="utf-8")
    metadata = load_model(checkpoint).metadata
    rows = read_log(checkpoint.parent.parent / "log.csv")
    loss = rows[rows["run"] == metadata["run"]]["val_loss"].iloc[-1]
    for words in (
        f"run {metadata['run']}",
        f"{loss:.4f} nats",
        metadata["commit"],
        metadata["corpus"],
        "GPT-2",
        "208 ",
    ):
        assert words in card


# How the folder is written


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_not_empty_is_refused_without_force(exported, tmp_path, command):
    checkpoint, folder = exported("pre_norm")
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / "other.txt").write_text("mine", encoding="utf-8")
    before = content(tmp_path)
    assert "is not empty" in command(export, checkpoint, "--out", tmp_path, fails=True)
    assert content(tmp_path) == before
    command(export, checkpoint, "--out", tmp_path, "--force")
    assert content(tmp_path) == content(folder) | {"other.txt": b"mine"}


@pytest.mark.parametrize("there", [{}, {"config.json": b"old", "model.safetensors": b"old weights"}])
def test_a_full_disk_leaves_the_folder_unchanged(there, tmp_path, monkeypatch, exported, command):
    checkpoint, _ = exported("pre_norm")
    for name, old in there.items():
        (tmp_path / name).write_bytes(old)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in command(export, checkpoint, "--out", tmp_path, "--force", fails=True)
    assert content(tmp_path) == there


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["residual"], "residual has no stock architecture: none is without norms; rungs that"),
        (["rotary"], "there is no checkpoint of rotary in"),
        (["nothing.pt"], "there is no checkpoint nothing.pt"),
        (["gpt", "--out", str(ROOT / "gpt.py")], "cannot write to"),
    ],
)
def test_an_impossible_export_is_a_one_line_error(args, words, tmp_path, command):
    args = args if "--out" in args else [*args, "--out", tmp_path / "out"]
    assert words in command(export, *args, "--runs-dir", tmp_path, fails=True)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_the_architecture_lacks_is_an_error(exported, tmp_path, command, monkeypatch):
    """As for a rung whose file has been edited."""
    checkpoint, _ = exported("gpt")
    monkeypatch.setitem(ARCHITECTURES, "gpt", ARCHITECTURES["swiglu"])
    error = command(export, checkpoint, "--out", tmp_path / "out", fails=True)
    assert "gpt has a weight position_embedding.weight, for which Qwen3 has no place" in error
    assert not (tmp_path / "out").exists()
