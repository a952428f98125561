"""Trained models that another model learns from."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from data import Corpus, UserError
from training.checkpoint import checkpoint_path, load_checkpoint
from training.cli import as_typed
from training.presets import ScaledConfig
from training.provenance import ROOT, rung_code, shared_code

MODERN = ROOT / "stages" / "modern.py"


def load_teachers(
    language_model: type[nn.Module], paths: tuple[Path, ...], config: ScaledConfig, corpus: Corpus
) -> list[nn.Module]:
    """The models of the checkpoints `paths`, frozen; without any, that of modern.py with the same settings and seed.

    Raises UserError for a checkpoint that is missing, of another text or split, or of another architecture.
    """
    if not paths and config.minutes:
        raise UserError("with --minutes there is no default teacher: name trained models with --teachers")
    if not paths and not has_default_teacher(config, corpus):
        command = as_typed(MODERN, default_teacher(config))
        raise UserError(f"there is no teacher; first run {command}, or name checkpoints with --teachers")
    return [_load(language_model, path, config, corpus) for path in paths or [_default_path(config, corpus)]]


def default_teacher(config: ScaledConfig) -> ScaledConfig:
    """The settings of modern.py that a run with `config` learns from by default: those that both have."""
    modern = import_module("stages.modern")  # here, because rungs import this package
    same = {field.name: getattr(config, field.name) for field in fields(ScaledConfig)}
    return modern.Config(**same | {"resume": False})


def has_default_teacher(config: ScaledConfig, corpus: Corpus) -> bool:
    """Whether the default teacher is saved, and is of the present code."""
    try:
        metadata = load_checkpoint(_default_path(config, corpus))["metadata"]
    except UserError:
        return False
    return (metadata["rung_code"], metadata["shared_code"]) == (rung_code(MODERN), shared_code())


def _default_path(config: ScaledConfig, corpus: Corpus) -> Path:
    return checkpoint_path(MODERN.stem, default_teacher(config), corpus.sha256)


def _load(language_model: type[nn.Module], path: Path, config: ScaledConfig, corpus: Corpus) -> nn.Module:
    content = load_checkpoint(path)
    settings, metadata = content["config"], content["metadata"]
    if content["step"] < metadata["steps"]:
        raise UserError(f"{path} is of a run that has not finished; finish it first, with --resume")
    if metadata["corpus_sha256"] != corpus.sha256[:12] or settings.get("holdout") != config.holdout:
        raise UserError(f"{path} was trained on another text or split; train it on the same one")
    try:
        teacher = language_model(corpus.tokenizer.vocab_size, SimpleNamespace(**settings))
        teacher.load_state_dict(content["weights"])
    except (RuntimeError, AttributeError):
        raise UserError(f"{path} is not a model of this architecture; name one of stages/modern.py") from None
    if settings["block_size"] < config.block_size:
        raise UserError(f"{path} has a context of {settings['block_size']}; use --block-size {settings['block_size']}")
    return teacher.eval().requires_grad_(False).to(corpus.train.device)
