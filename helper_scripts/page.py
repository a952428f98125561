"""Write docs/ladder.html: the ladder as one page, with models that run in the browser.

The page uses runs that have both rows in the log and a checkpoint: rungs 1 to 7 with their own settings, the others
with the laptop preset, and modern also with the quick preset. Rungs without such a run are left out, and listed with
the command that trains them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data import LOSS_CSV, Corpus, UserError, load_corpus, read_log
from data.files import atomic_write
from helper_scripts.compare import interval, paired
from helper_scripts.ladder_page import figures, lesson, weights
from helper_scripts.ladder_page.fill import fill
from helper_scripts.models import (
    RUNGS,
    Trained,
    config_of,
    is_beside,
    load_model,
    rung_before,
    rung_module,
    rung_path,
)
from helper_scripts.results import Results, Selection, load_results
from training import ScaledConfig
from training.cache import use_cache
from training.checkpoint import checkpoint_path
from training.cli import errors_in_one_line, parse
from training.config import RUNS_DIR
from training.generation import encode_prompt, generate, window_start
from training.presets import Preset
from training.provenance import ROOT
from training.run import count_parameters

MOST = 5_000_000  # bytes of the page

# The rungs that run in the page: models.js has them. For each, the presets to use; the first one with a run is taken.
LIVE: dict[str, tuple[Preset | None, ...]] = {
    "bigram": (None,),
    "self_attention": (None,),
    "multi_head": (None,),
    "feed_forward": (None,),
    "residual": (None,),
    "post_norm": (None,),
    "pre_norm": (None,),
    "gpt": ("laptop",),
    "modern": ("quick", "laptop"),
}

# Passages of the validation split: what to look for, and how each begins and ends. Most fit into the context of the
# laptop preset; past it, a model with rotary positions needs a step for each character.
PASSAGES = (
    ("A name comes back", "GREMIO:\nYoungling, thou canst", "But thine doth fry."),
    ("A quote is closed", "Was the first man that leap'd", "Why that's my spirit!"),
    ("Latin, new to all", "'Hic ibat Simois", "'Simois,' I"),
    ("Verse with a rhythm", "Women are made to bear, and so", "I will not burden thee;"),
    ("One word, again and again", "Is it new and old too?", "hear of Petruchio's coming?"),
)
SAMPLE = 200  # characters in the sample of a rung that does not run in the page


@dataclass(frozen=True)
class Options:
    loss_csv: Path = LOSS_CSV  # the log to read
    runs_dir: Path = RUNS_DIR  # where the checkpoints are
    out: Path = ROOT / "docs" / "ladder.html"  # the page to write


@dataclass(frozen=True)
class Rung:
    """A rung of the page.

    results: the log's rows of its preset, which `trained` is of. live: the model that runs in the page, if one does.
    """

    name: str
    results: Results
    trained: Trained
    live: Trained | None
    live_loss: float | None  # on the whole validation split, as logged


def main() -> None:
    with errors_in_one_line():
        options = parse(Options, description=__doc__)
        write_page(options)


def write_page(options: Options) -> None:
    """Write the page, whole or not at all, and say what is not on it. Raises UserError, also for a damaged log."""
    read_log(options.loss_csv)
    corpus = load_corpus()
    rungs, missing = find_rungs(options, corpus)
    for line in missing:
        print(line)
    if not rungs:
        raise UserError("no rung has both finished runs in the log and a checkpoint; train one of those above first")
    page = fill(contents(rungs, corpus))
    if len(page) > MOST:
        raise UserError(f"the page would have {len(page):,} bytes, more than {MOST:,}; take a rung out of LIVE")
    try:
        with atomic_write(options.out) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"cannot write {options.out}: {error.strerror}; choose another file with --out") from None
    live = [rung.name for rung in rungs if rung.live]
    print(f"wrote {options.out}: {len(page):,} bytes, {len(rungs)} rungs, of which run in it: {', '.join(live)}")


# What goes on the page


def find_rungs(options: Options, corpus: Corpus) -> tuple[list[Rung], list[str]]:
    """The rungs with runs and a checkpoint, in ladder order, and a line for each model that there is not."""
    results = {preset: _results(options, preset) for preset in (None, "laptop", "quick")}
    rungs, missing = [], []
    for name in RUNGS:
        try:
            own = "laptop" if issubclass(rung_module(name).Config, ScaledConfig) else None
        except Exception as error:  # while its file is being edited
            missing.append(f"left out {name}: its file fails ({type(error).__name__})")
            continue
        trained = {}
        for preset in dict.fromkeys((own, *LIVE.get(name, ()))):
            trained[preset] = _find_model(results[preset], name, options, corpus)
            if not trained[preset]:
                flags = f" --preset {preset}" if preset else ""
                command = f"python {rung_path(name).relative_to(ROOT).as_posix()}{flags}"
                missing.append(
                    f"missing: {name}{flags}: no checkpoint of a run that the log has; train it with {command}"
                )
        if trained[own]:
            preset = next((preset for preset in LIVE.get(name, ()) if trained[preset]), None)
            live = trained[preset] if name in LIVE else None
            loss = float(results[preset].losses(name)[live.config.seed]) if live else None
            rungs.append(Rung(name, results[own], trained[own], live, loss))
    return rungs, missing


def _results(options: Options, preset: Preset | None) -> Results | None:
    try:
        return load_results(Selection(options.loss_csv, preset=preset))
    except UserError:  # the log can be read, but has no such runs
        return None


def _find_model(results: Results | None, name: str, options: Options, corpus: Corpus) -> Trained | None:
    """The model of the first seed that has a checkpoint, of a run that `results` has."""
    if results is None or name not in results.order or results.corpus != corpus.name:
        return None
    for seed in sorted(results.losses(name).index):
        config = config_of(results.full(name), seed=int(seed), runs_dir=options.runs_dir)
        path = checkpoint_path(name, config, corpus.sha256)
        if path.exists() and (trained := load_model(path)).metadata["run"] in set(results.rows["run"]):
            return trained
    return None


def passages(corpus: Corpus) -> list[dict]:
    """Of the validation split: {"title", "text"}. Of a text without them, its first 200 characters."""
    text, found = corpus.tokenizer.decode(corpus.val), []
    for title, beginning, end in PASSAGES:
        if (start := text.find(beginning)) >= 0:
            found.append({"title": title, "text": text[start : text.index(end, start) + len(end)]})
    return found or [{"title": "The validation split", "text": text[:200]}]


@torch.no_grad()
def expected(trained: Trained, ids: Tensor) -> Tensor:
    """Logits (T, V) of what follows each of ids (T,): each from the context that generation would use."""
    model, T = trained.model, trained.config.block_size
    if weights.cache_of(trained) == "rotary":
        with use_cache(model, {}):
            parts = [model(part[None])[0] for part in (ids[:T], *ids[T:].split(1)) if len(part)]
        return torch.cat(parts)
    starts = [window_start(end, model, T) for end in range(1, len(ids) + 1)]
    windows = {start: model(ids[None, start : start + T])[0] for start in set(starts)}
    return torch.stack([windows[start][t - start] for t, start in enumerate(starts)])


def losses(trained: Trained, text: str) -> list[float]:
    """In nats, of each character of `text` but the first."""
    ids = trained.tokenizer.encode(text).long()
    return [round(loss, 3) for loss in F.cross_entropy(expected(trained, ids[:-1]), ids[1:], reduction="none").tolist()]


def contents(rungs: list[Rung], corpus: Corpus) -> dict:
    """What `fill` puts into the template."""
    texts = passages(corpus)
    places = numbers([rung.name for rung in rungs])
    entries = [entry(rung, places, corpus, texts) for rung in tqdm(rungs, desc="rungs")]
    shown = ("name", "number", "title", "before", "live", "losses", "flags", "block_size")
    data = {
        "alphabet": corpus.tokenizer.chars,
        "passages": texts,
        "rungs": [{key: each[key] for key in shown} for each in entries],
    }
    models = {
        rung.name: weights.pack(rung.live, int8=issubclass(rung_module(rung.name).Config, ScaledConfig))
        for rung in rungs
        if rung.live
    }
    return {"entries": entries, "passages": texts, "data": data, "models": models}


def numbers(names: list[str]) -> dict[str, str]:
    """Of each rung: its number on the ladder, or "beside" and that of the rung it is compared with."""
    found, ladder = {}, itertools.count(1)
    for name in names:
        found[name] = f"beside {found.get(rung_before(name, names), '')}" if is_beside(name) else str(next(ladder))
    return found


def entry(rung: Rung, places: dict[str, str], corpus: Corpus, texts: list[dict]) -> dict:
    """What the page shows of one rung. places: as from `numbers`."""
    module, before, trained = rung_module(rung.name), rung_before(rung.name, list(places)), rung.trained
    title, paragraphs = lesson.explanation(rung.name)
    adds = title.partition(": ")[2] or title
    has_spectrum = "newton_schulz" in getattr(module, "LESSON", ())
    return {
        "name": rung.name,
        "number": places[rung.name],
        "title": f"{adds[0].upper()}{adds[1:]}",
        "before": before,
        "paragraphs": paragraphs,
        "file": rung_path(rung.name).relative_to(ROOT).as_posix(),
        "diff": lesson.diff(rung.name, before),
        "shapes": lesson.shapes(trained),
        "curve": figures.loss_curve(rung.results, rung.name),
        "change": change(rung.results, rung.name),
        "flags": rung.results.flags,
        "parameters": count_parameters(trained.model),
        "block_size": trained.config.block_size,
        "live": live_metadata(rung, texts) if rung.live else None,
        "losses": None if rung.live else [losses(trained, text["text"]) for text in texts],
        "sample": None if rung.live else sample(trained),
        "spectrum": figures.singular_values(trained, corpus) if has_spectrum else None,
    }


def live_metadata(rung: Rung, texts: list[dict]) -> dict:
    """Which model it is that runs in the page, and what the page has to know of it.

    rounding: by how much int8 changes its mean loss on the passages.
    """
    live, config = rung.live, rung.live.config
    metadata = {
        "preset": getattr(config, "preset", None),
        "loss": rung.live_loss,
        "block_size": config.block_size,
        "layers": getattr(config, "n_layer", 1 if hasattr(config, "n_embd") else 0),
        "heads": getattr(config, "n_head", 1),
        "large": isinstance(config, ScaledConfig),
        "rounding": None,
    }
    if metadata["large"]:
        means = [mean_loss(each, texts) for each in (live, weights.rounded(live))]
        metadata["rounding"] = means[1] - means[0]
    return metadata


def mean_loss(trained: Trained, texts: list[dict]) -> float:
    """Over all characters of the passages."""
    all_losses = [loss for text in texts for loss in losses(trained, text["text"])]
    return sum(all_losses) / len(all_losses)


def change(results: Results, label: str) -> dict | None:
    """By how much the rung is above the one before, in nats, over the seeds that both have; with the 95% interval."""
    before = results.before(label)
    if not before:
        return None
    differences = paired(results.losses(before), results.losses(label))
    if differences.empty:
        return None
    low, high = interval(differences) if len(differences) > 1 else (None, None)
    return {"before": before, "mean": differences.mean(), "low": low, "high": high, "n": len(differences)}


def sample(trained: Trained) -> str:
    start = encode_prompt(trained.tokenizer, "")
    generator = torch.Generator().manual_seed(0)
    ids = generate(trained.model, start, SAMPLE, trained.config.block_size, generator=generator)
    return trained.tokenizer.decode(ids[len(start) :])


if __name__ == "__main__":
    main()
