"""Trained models that another one learns from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

from torch import nn

from data import Corpus, UserError
from training.checkpoint import checkpoint_path, load_checkpoint
from training.config import all_flags
from training.presets import ScaledConfig

DEFAULT_TEACHER = "modern"  # the rung


def load_teachers(
    language_model: type[nn.Module], paths: tuple[Path, ...], config: ScaledConfig, corpus: Corpus
) -> list[nn.Module]:
    """The models of the checkpoints `paths`, frozen; without any, DEFAULT_TEACHER's of the same settings and seed.

    Raises UserError for a checkpoint that is missing, that saw another text or split, or that does not fit.
    """
    if not paths:
        teacher = default_teacher(config)
        paths = (checkpoint_path(DEFAULT_TEACHER, teacher, corpus.sha256),)
        if not paths[0].exists():
            command = " ".join(["python stages/modern.py", *all_flags(teacher)])
            raise UserError(f"there is no model to learn from; first run {command}, or name some with --teachers")
    return [_load(language_model, path, config, corpus) for path in paths]


def default_teacher(config: ScaledConfig) -> ScaledConfig:
    """The settings of the run of DEFAULT_TEACHER that a run with `config` learns from: those that both have."""
    return ScaledConfig(**{field.name: getattr(config, field.name) for field in fields(ScaledConfig)})


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
