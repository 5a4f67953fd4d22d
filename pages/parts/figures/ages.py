"""How far weights moved against the step they were selected at."""

from __future__ import annotations

from typing import Any

import numpy as np

from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.palette import Theme, style_of


def ages_chart(found: dict[str, Any], theme: Theme) -> Chart:
    """Median change of each group of weights, with the middle half of its weights.

    Args:
        found: what `engine.export.ages.ages` returned.
        theme: of the browser.
    """
    rows = found["rows"]
    middle = np.array([(row["first"] + row["last"]) / 2 + 1 for row in rows])
    low, median, high = np.array([row["quartiles"] for row in rows], dtype=float).T
    style = style_of(found["method"], theme)
    count = sum(row["count"] for row in rows)
    return Chart(
        name="ages",
        title=f"Change of the selected weights by the step of their selection (n = {count:,})",
        x="step of selection",
        y="absolute change, median and middle half",
        series=(
            Series("median", middle, median, style.colour, dash=style.dash),
            Series(
                "middle half", middle, median, style.colour, "points", marker=style.marker, low=low, high=high,
                labels=tuple(f"{row['count']:,} weights, {row['unmoved']:,} unmoved" for row in rows),
            ),
        ),
        alt=f"Median change {median[0]:.2e} of the weights selected first, {median[-1]:.2e} of those selected last.",
        y_format=".1e",
        height=340,
    )  # fmt: skip
