"""Write a trained rung as a Hugging Face model: a folder that the transformers library loads.

The model is a checkpoint, or the latest of a rung. The folder gets config.json, model.safetensors, a tokenizer with one
token per character, and README.md, a short model card. Writing it does not need transformers.

Rungs 6 to 13 and previous_token become an architecture of that library, with equal logits: rung 8 is a GPT-2, rung 12 a
Qwen3. Any other rung is an error that names the part which the library lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from safetensors.torch import save

from data import CharTokenizer, UserError
from data.files import atomic_write
from helper_scripts.models import RUNGS, Trained, find_checkpoint, load_model
from helper_scripts.stock import Stock, architecture_of, stock_model
from training.checkpoint import load_checkpoint
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR
from training.generation import encode_prompt


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional]  # a checkpoint or a rung
    out: Path  # the folder to write
    force: bool = False  # write into a folder that is not empty; its other files stay
    runs_dir: Path = RUNS_DIR  # where the checkpoints are


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        check_free(options.out, options.force)
        if options.model in RUNGS:
            architecture_of(options.model)  # before a user trains it for the export
        trained = load_model(find_checkpoint(options.runs_dir, options.model))
        stock = stock_model(trained)
        write_folder(options.out, files(trained, stock, load_checkpoint(trained.path)))
        print(f"wrote {options.out}: {trained.path} as {stock.name}, which transformers loads:\n\n{usage(options.out)}")


def check_free(folder: Path, force: bool) -> None:
    """Raises UserError for a folder that holds something, unless `force`, and for what is no folder."""
    try:
        if not force and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; choose another --out, or add --force")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def files(trained: Trained, stock: Stock, checkpoint: dict) -> dict[str, bytes]:
    """What the folder holds, by name. checkpoint: as `load_checkpoint` returns it."""
    block_size = trained.config.block_size
    texts = {
        "config.json": stock.config,
        "generation_config.json": {
            "do_sample": True,
            "max_length": block_size,  # prompt included
            "bos_token_id": int(encode_prompt(trained.tokenizer, "")[0]),  # what an empty prompt stands for
        },
        "tokenizer.json": character_tokenizer(trained.tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": block_size,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        },
    }
    made = {name: json.dumps(content, indent=2) + "\n" for name, content in texts.items()}
    made["README.md"] = model_card(trained, stock, checkpoint)
    weights = save(stock.weights, metadata={"format": "pt"})
    return {name: text.encode("utf-8") for name, text in made.items()} | {"model.safetensors": weights}


def character_tokenizer(tokenizer: CharTokenizer) -> dict:
    """`tokenizer` as the tokenizers library reads it: every character a word by itself, and nothing else done to it.

    An unknown character is an error there too, because the unknown token has no id.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},  # not a dot, which leaves line breaks out
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},  # joined, without the space that stands between words
        "model": {
            "type": "WordLevel",
            "vocab": {character: rank for rank, character in enumerate(tokenizer.chars)},
            "unk_token": "not in the vocabulary",  # longer than a character, so it is none
        },
    }


def model_card(trained: Trained, stock: Stock, checkpoint: dict) -> str:
    """The folder's README.md."""
    metadata, config = trained.metadata, trained.config
    evaluations = checkpoint["evaluations"]
    split = "the held-out end of the train split" if config.holdout else "the validation split"
    loss = f"{evaluations[-1]['val_loss']:.4f} nats per character, on {split}" if evaluations else "not evaluated"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {metadata["rung"]}

A character-level language model, trained on the text {metadata["corpus"]}. Its architecture is {stock.name}:

```python
{usage("FOLDER")}
```

- rung: {metadata["rung"]}, run {metadata["run"]}
- loss: {loss}
- training: {checkpoint["step"]:,} of {metadata["steps"]:,} steps, seed {metadata["seed"]}
- corpus: {metadata["corpus"]}, sha256 {metadata["corpus_sha256"]}
- commit: {metadata["commit"]}
- context: {config.block_size} characters. {stock.past_context}
- vocabulary: {trained.tokenizer.vocab_size} characters, each of them a token. A text with any other is
  refused: `Missing [UNK] token`.
"""


def usage(folder: Path | str) -> str:
    """Three lines of Python that load the model."""
    return "\n".join(
        (
            "from transformers import pipeline",
            f'generator = pipeline("text-generation", {json.dumps(str(folder), ensure_ascii=False)})',
            r'print(generator("\n")[0]["generated_text"])',
        )
    )


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files, by name, into `folder`, which is made if needed; other files stay.

    The largest is the first, so that a full disk leaves what was there. Raises UserError if writing fails.
    """
    try:
        for name in sorted(contents, key=lambda name: -len(contents[name])):
            with atomic_write(folder / name) as file:
                file.write(contents[name])
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


if __name__ == "__main__":
    main()
