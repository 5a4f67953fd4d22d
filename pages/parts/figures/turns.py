"""Which layers train, over the steps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.probes.recorded import Turns
from pages.parts.figures.grid import Cell, Grid, Section, percent

COLUMNS = 60
"""Most columns of the picture."""


def turns_grid(turns: Turns) -> Grid:
    """Layers down, steps across; filled as far as a layer's weights trained in these steps."""
    starts, stops = turns.ends[:-1] + 1, turns.ends[1:]
    spans = [f"step {a:,}" if a == b else f"steps {a:,} to {b:,}" for a, b in zip(starts, stops, strict=True)]
    cells = tuple(
        Cell(p, c, float(share), "", f"{spans[c]}: {percent(float(share))} of its weights train")
        for p, shares in enumerate(turns.shares)
        for c, share in enumerate(shares)
    )
    every = max(1, -(-len(starts) // 8))
    labels = tuple(f"{start:,}" if place % every == 0 else "" for place, start in enumerate(starts))
    never = [place for place, shares in zip(turns.places, turns.shares, strict=True) if not shares.any()]
    if never:
        said = f"So far never trained: {', '.join(never)}."
    elif np.all(turns.shares == turns.shares[:, :1]):
        said = "The same weights train all the time."
    else:
        said = "Every layer has trained at some time."
    return Grid(
        name="layers",
        title=f"Layers that train, over {turns.ends[-1]:,} steps",
        alt=f"{said} Each column is {_width(turns)}; the task head, not shown, trains all the time.",
        high=1.0,
        unit="share of a layer's weights that trains, mean of the column's steps",
        tick=percent,
        sections=(Section(turns.places, labels, cells, gaps=False),),
        table=lambda: pd.DataFrame(
            {
                "from step": starts,
                "to step": stops,
                **dict(zip(turns.places, turns.shares, strict=True)),
            }
        ),
    )


def _width(turns: Turns) -> str:
    widths = np.unique(np.diff(turns.ends))
    if len(widths) == 1:
        return "one step" if widths[0] == 1 else f"{widths[0]:,} steps"
    return f"{widths[0]:,} or {widths[-1]:,} steps"
