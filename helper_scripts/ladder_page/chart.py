"""A line chart, as the numbers that the page's template draws."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from matplotlib.ticker import EngFormatter, MaxNLocator

WIDTH, HEIGHT = 420, 250  # of a picture, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 92, 20, 38  # its margins


@dataclass
class Chart:
    """Lines in a frame. x, y: their ranges."""

    title: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    lines: list[dict] = field(default_factory=list)
    note: str = ""
    width = WIDTH
    height = HEIGHT
    frame = (LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.frame
        across, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(left + width * across, 1), round(top + height * (1 - up), 1)

    def add(self, xs, ys, kind: str, label: str = "") -> None:
        """A line. kind: its CSS class. label: written at its end."""
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True)]
        self.lines.append({"points": " ".join(f"{x},{y}" for x, y in points), "kind": kind, "label": label})
        self.lines[-1]["end"] = max(points[-1][1], TOP + 4)

    def spread_labels(self) -> Chart:
        """Move labels that would lie on each other apart."""
        labelled = sorted((line for line in self.lines if line["label"]), key=lambda line: line["end"])
        for above, below in itertools.pairwise(labelled):
            below["end"] = max(below["end"], above["end"] + 26)
        too_low = max(0, max((line["end"] for line in labelled), default=0) + 22 - (HEIGHT - BOTTOM))
        for line in labelled:
            line["end"] -= too_low
        return self

    def ticks(self, axis: str) -> list[tuple[float, str]]:
        low, high = getattr(self, axis)
        values = [value for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]
        place = (lambda value: self.at(value, self.y[0])[0]) if axis == "x" else lambda v: self.at(self.x[0], v)[1]
        name = EngFormatter(sep="") if axis == "x" else lambda value: f"{value:.4g}"
        return [(place(value), name(value)) for value in values]
