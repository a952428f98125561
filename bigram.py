"""Rung 1, bigram: the next character from the last one alone.

A table with a row for each character: the logits of what comes next. It is what every other rung has to beat.
Counting the pairs of the train split, and adding one to each count, gives a table whose loss on the validation split is
2.482.

In the curve: a fast fall from ln 65 = 4.17, where every character is as likely as any other, then a flat line. More
steps buy nothing; only more context does.
"""

from dataclasses import dataclass

from torch import nn

from training import TrainConfig, run


@dataclass(frozen=True)
class Config(TrainConfig):
    learning_rate: float = 1e-2  # AdamW's step size: a table bears a large one


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, vocab_size)  # row: this character; column: the next one
        nn.init.zeros_(self.token_embedding.weight)  # no opinion yet: all equally likely

    def forward(self, idx):
        """idx: int64 (B, T) -> logits (B, T, V)."""
        return self.token_embedding(idx)  # (B, T) -> (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
