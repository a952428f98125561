"""The figures of the page: the loss curves, and the singular values of an update of Muon."""

from __future__ import annotations

import pandas as pd
import torch

from data import Corpus
from helper_scripts.ladder_page.chart import Chart
from helper_scripts.models import Trained, rung_module
from helper_scripts.results import Results
from training.update import cross_entropy


def loss_curve(results: Results, label: str) -> Chart:
    """The validation loss of every seed of a rung, their mean, and the mean of the rung that it is compared with."""
    before = results.before(label)
    curves = results.curves()
    own, others = curves[curves["label"] == label], curves[curves["label"] == before]
    shown = pd.concat([own, others])
    shown = shown[shown["step"] >= shown["steps"] / 10]["val_loss"]
    room = 0.06 * max(0.1, shown.max() - shown.min())
    seeds = own["seed"].nunique()
    title = f"Validation loss of {label} while it trains, {seeds} seed{'s' * (seeds > 1)}"
    chart = Chart(
        title, (0, own["step"].max()), (shown.min() - room, shown.max() + room), "steps", "nats per character"
    )
    if before:
        mean = others.groupby("step")["val_loss"].mean()
        chart.add(mean.index, mean, "before", f"{before} {mean.iloc[-1]:.3f}")
    for _, one in own.groupby("seed"):
        chart.add(one["step"], one["val_loss"], "seed")
    mean = own.groupby("step")["val_loss"].mean()
    chart.add(mean.index, mean, "own", f"{label} {mean.iloc[-1]:.3f}")
    return chart.spread_labels()


def singular_values(trained: Trained, corpus: Corpus) -> Chart:
    """Singular values of a matrix's gradient, on a batch, before and after the rung's `newton_schulz`."""
    model, config = trained.model, trained.config
    idx, targets = corpus.batch(0, 0, config.batch_size, config.block_size)
    cross_entropy(model(idx), targets).backward()
    gradient = model.blocks[0].feed_forward.down.weight.grad[None]
    model.zero_grad()
    before = torch.linalg.svdvals(gradient / gradient.norm())[0]
    after = torch.linalg.svdvals(rung_module(trained.metadata["rung"]).newton_schulz(gradient))[0]
    rows, columns = gradient.shape[1:]
    title = f"Singular values of an update of a {rows} x {columns} matrix, before and after Newton-Schulz"
    axes = "singular values, the largest first", "log10 of the singular value"
    chart = Chart(title, (1, len(before)), (-4.0, 0.2), *axes)
    numbers = range(1, len(before) + 1)
    chart.add(numbers, before.clamp(min=1e-4).log10().tolist(), "before", "before")
    chart.add(numbers, after.log10().tolist(), "own", "after")
    ratios = [(values.max() / values.median()).item() for values in (before, after)]
    chart.note = "Before, the largest is {:.1f} times the median; after Newton-Schulz, {:.1f} times.".format(*ratios)
    return chart.spread_labels()
