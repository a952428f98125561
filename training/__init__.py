"""What every rung shares: settings, loop, device, evaluation, checkpoint, sampling. No architecture is in here."""

from training.config import TrainConfig
from training.presets import ScaledConfig
from training.run import run, train_rung

__all__ = ["ScaledConfig", "TrainConfig", "run", "train_rung"]
