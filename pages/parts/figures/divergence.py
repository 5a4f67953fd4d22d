"""From KL to Fisher: measured divergence of the answers against its quadratic prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.palette import Theme, colour

_LOOKS = {
    "top": ("selective", "triangle-up"),
    "random": ("baseline", "circle"),
    "bottom": ("reparameterised", "square"),
}
NAMES = {"top": "largest Fisher information", "random": "at random", "bottom": "smallest"}
"""Groups of weights in words."""


def divergence_chart(found: dict[str, Any], theme: Theme) -> Chart:
    """Mean divergence by step and group of weights, with the range over draws; lines are the prediction.

    What is zero has no place on a logarithmic axis and is left out.

    Args:
        found: what `engine.training.divergence.from_kl_to_fisher` returned.
        theme: of the browser.
    """
    series: list[Series] = []
    for group, (family, marker) in _LOOKS.items():
        rows = [row for row in found["rows"] if row["group"] == group and min(row["kl"]) > 0]
        if not rows:
            continue
        steps = np.array([row["step"] for row in rows])
        kl, predicted = (np.array([row[key] for row in rows], dtype=float) for key in ("kl", "quadratic"))
        tone = colour(family, theme)
        series += [
            Series(f"{NAMES[group]}: predicted", steps, predicted.mean(1), tone, dash=(6, 3)),
            Series(
                f"{NAMES[group]}: measured",
                steps,
                kl.mean(1),
                tone,
                "points",
                marker=marker,
                low=kl.min(1),
                high=kl.max(1),
            ),
        ]
    draws = len(found["rows"][0]["kl"])
    small = {row["group"]: np.mean(row["kl"]) for row in reversed(found["rows"])}
    times = f"{small['top'] / small['random']:,.0f} times" if small["random"] else "far more than"
    return Chart(
        name="divergence",
        title=f"Divergence of the answers when {found['k']:,} weights move (n = {found['examples']}, {draws} draws)",
        x="length of the displacement",
        y="KL from the old answers, nats; mean and range",
        series=tuple(series),
        alt=f"A small step of the weights with the largest information moves the answers {times} as far as at random.",
        log_x=True,
        log_y=True,
        y_format=".0e",
        x_format=".0e",
        height=380,
    )  # fmt: skip
