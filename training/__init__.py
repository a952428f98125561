"""What every rung shares: flags, loop, device, evaluation, checkpoint, sampling. It knows no architecture."""

from training.config import TrainConfig
from training.run import run, train_rung

__all__ = ["TrainConfig", "run", "train_rung"]
