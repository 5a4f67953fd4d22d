"""One run at many budgets: accuracy against the size its mask is cut to."""

from __future__ import annotations

from typing import Any

import numpy as np

from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.palette import Theme, style_of


def budgets_chart(found: dict[str, Any], theme: Theme) -> Chart:
    """Test accuracy with its interval at each size.

    Args:
        found: what `engine.export.budgets.budgets` returned.
        theme: of the browser.
    """
    rows = found["rows"]
    params, right = (np.array([row[key] for row in rows], dtype=float) for key in ("params", "accuracy"))
    low, high = (np.array([row["ci95"][end] for row in rows]) for end in (0, 1))
    style = style_of(found["method"], theme)
    return Chart(
        name="budgets",
        title=f"Test accuracy of one mask at its earlier sizes (n = {rows[0]['total']})",
        x="weights kept of those selected",
        y="test accuracy, 95 % interval (higher is better)",
        series=(
            Series("as cut", params, right, style.colour, dash=style.dash),
            Series(
                "95 % interval", params, right, style.colour, "points", marker=style.marker, low=low, high=high,
                labels=tuple(f"{row['correct']} of {row['total']}" for row in rows),
            ),
        ),
        alt=f"{right[0]:.1%} with {int(params[0]):,} weights, {right[-1]:.1%} with all {int(params[-1]):,}.",
        x_format="~s",
        y_format=".1%",
        height=340,
    )  # fmt: skip
