"""What a method measured of each layer or head before it chose."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.probes.found import Score, Scores
from pages.parts.figures.chart import Chart, Series, level
from pages.parts.figures.palette import Style, Theme, colour

SPREAD = 0.6
"""Width of all heads of one layer together, in layers."""


def scores_chart(scores: Scores, style: Style, theme: Theme) -> Chart:
    """Score by layer, heads of a layer side by side; those that train are larger and in the method's colour."""
    most = max((row.part for row in scores.rows), default=0)

    def drawn(name: str, chosen: bool, tone: str, marker: str, size: float) -> Series:
        rows = [row for row in scores.rows if row.chosen == chosen]
        return Series(
            name,
            np.array([row.layer + (SPREAD * (row.part / most - 0.5) if most else 0.0) for row in rows]),
            np.array([row.value for row in rows]),
            tone,
            "points",
            marker=marker,
            labels=tuple(scores.title(row) for row in rows),
            sizes=np.full(len(rows), size),
        )

    guide = colour("guide", theme)
    below = any(row.value < 0 for row in scores.rows)
    return Chart(
        name="scores",
        title=f"Score of each {scores.unit} (n = {scores.examples:,} examples)",
        x="layer" if scores.unit == "layer" else "layer, its heads side by side",
        y=scores.what,
        alt=_sentence(scores),
        series=(
            *([level("no effect", 0.0, guide, (2, 3))] if below else []),
            drawn(
                "not trained", False, colour("baseline", theme), "circle" if style.marker != "circle" else "square", 60
            ),
            drawn("trained", True, style.colour, style.marker, 150),
        ),
        x_range=(-0.5, max((row.layer for row in scores.rows), default=0) + 0.5),
        whole_x=True,
        x_format="d",
        height=380,
        rows=lambda: scores_table(scores),
    )


def scores_table(scores: Scores) -> pd.DataFrame:
    """Every layer or head, the highest score first."""
    rows = _ranked(scores)
    part = {"head": [row.part for row in rows]} if scores.unit == "head" else {}
    return pd.DataFrame(
        {
            "layer": [row.layer for row in rows],
            **part,
            scores.what.partition(":")[0]: [row.value for row in rows],
            "trained": [row.chosen for row in rows],
        }
    )


def scores_note(scores: Scores) -> str:
    """When and on what it was measured."""
    when = f"after step {scores.step:,}" if scores.step else "before the first step"
    return (
        f"Measured once, {when}, on {scores.examples:,} training examples; what is trained from then on are the "
        f"{sum(row.chosen for row in scores.rows):,} of {len(scores.rows):,} {scores.unit}s with the highest scores."
    )


def _ranked(scores: Scores) -> list[Score]:
    return sorted(scores.rows, key=lambda row: -row.value)


def _sentence(scores: Scores) -> str:
    ranked = _ranked(scores)
    chosen, others = ([row for row in ranked if row.chosen == which] for which in (True, False))
    if not chosen:
        return "Nothing has been chosen."
    best = f"Highest: {scores.title(chosen[0])}, {chosen[0].value:.3g}."
    if not others:
        return f"{best} All {len(ranked)} train."
    return (
        f"{best} The last that was chosen is {scores.title(chosen[-1])} with {chosen[-1].value:.3g}, "
        f"the first that was not {scores.title(others[0])} with {others[0].value:.3g}."
    )
