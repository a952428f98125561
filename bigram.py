"""Rung 1, bigram: a table of next-character logits.

Row i of the table holds the logits of the character after character i. It is the baseline of all other rungs. No table
can do much better than counting: the pairs of characters in the train split, with one added to each count, give 2.482
on the validation split.

In the curve: a fast fall from ln 65 = 4.17, where all characters are equally likely, then a flat line. More steps gain
nothing; a lower loss needs more context.
"""

from dataclasses import dataclass

from torch import nn

from training import TrainConfig, run


@dataclass(frozen=True)
class Config(TrainConfig):
    learning_rate: float = 1e-2  # of AdamW; a table allows a large one


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, config):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, vocab_size)  # row: this character; column: the next one
        nn.init.zeros_(self.token_embedding.weight)  # all characters equally likely

    def forward(self, idx):
        """idx: int64 (B, T) -> logits (B, T, V)."""
        return self.token_embedding(idx)  # (B, T) -> (B, T, V)


if __name__ == "__main__":
    run(LanguageModel, Config)
