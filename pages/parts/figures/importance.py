"""What a method learnt of its layers, judgement by judgement."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.probes.found import Importance
from pages.parts.figures.grid import Cell, Grid, Section, ceiling

COLUMNS = 60
"""Most moments shown."""


def importance_grid(importance: Importance) -> Grid:
    """Importance of each layer, layers down, judgements across; in the middle of the colours is 0, as at the start."""
    count = len(importance.steps)
    kept = np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))
    values, weights, steps = importance.values[kept], importance.weights[kept], importance.steps[kept]
    end = ceiling(float(np.abs(importance.values).max()))
    every = max(1, -(-len(kept) // 8))
    cells = tuple(
        Cell(
            place,
            column,
            max(float(values[column, place]) + end, 1e-6 * end),  # 0 would be drawn as nothing there
            "",
            f"after step {steps[column]:,}: importance {_signed(float(values[column, place]))}, "
            f"weight {weights[column, place]:.3f} in the draw",
        )
        for column in range(len(kept))
        for place in range(len(importance.layers))
    )
    names = tuple(f"layer {layer}" for layer in importance.layers)
    return Grid(
        name="importance",
        title="Importance of each layer over the steps",
        alt=_sentence(importance),
        high=2 * end,
        marks=(0.0, end, 2 * end),
        unit="importance, 0 at the start; the higher, the more often a layer trains",
        tick=lambda value: _signed(value - end),
        sections=(
            Section(
                names,
                tuple(f"{step:,}" if place % every == 0 else "" for place, step in enumerate(steps)),
                cells,
                gaps=False,
            ),
        ),
        table=lambda: pd.DataFrame(
            {"after step": importance.steps, **dict(zip(names, importance.values.T, strict=True))}
        ),
    )


def importance_note(importance: Importance) -> str:
    """What the numbers rest on."""
    least, most = importance.examples
    on = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    often = "After every step" if importance.interval == 1 else f"Every {importance.interval:,} steps"
    drawn = "one layer" if importance.drawn == 1 else f"{importance.drawn} layers"
    return (
        f"{often} the adapters of {importance.suppressed} of {len(importance.layers)} "
        f"layers are turned down, for {importance.sets} different sets of layers, and each set's loss is measured on "
        f"n = {on} training examples: each column is one judgement more, and a noisy one. Every step updates the "
        f"adapters of {drawn}, drawn by weights that grow with importance."
    )


def _sentence(importance: Importance) -> str:
    if not np.ptp(importance.values):
        return "All layers are equally important so far: none has been judged, or no judgement told them apart."
    last, weights = importance.values[-1], importance.weights[-1]
    top, bottom = int(last.argmax()), int(last.argmin())

    def said(place: int) -> str:
        return f"{_signed(float(last[place]))}, {weights[place] / weights.sum():.2%} of all weight in the draw"

    return (
        f"After step {importance.steps[-1]:,} layer {importance.layers[top]} is the most important ({said(top)}), "
        f"layer {importance.layers[bottom]} the least ({said(bottom)}); an even draw gives {1 / len(last):.2%} to each."
    )


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.2g}"
