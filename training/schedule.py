"""The learning rate, step by step."""

from __future__ import annotations

from training.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of update number `step` + 1: a linear warm-up, then constant or falling to zero."""
    warmup = min(config.warmup_steps, config.steps // 10)  # at most a tenth of a short run
    rise = (step + 1) / (warmup + 1)
    fall = (config.steps - step) / max(1, config.steps - warmup) if config.schedule == "linear" else 1.0
    return config.learning_rate * min(1.0, rise, fall)
