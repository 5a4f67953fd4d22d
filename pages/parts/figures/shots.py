"""In-context learning in one picture: accuracy against the number of solved questions in front."""

from __future__ import annotations

from typing import Any

import numpy as np

from pages.parts.figures.chart import Chart, Series, level
from pages.parts.figures.palette import Theme, colour


def shots_chart(found: dict[str, Any], title: str, theme: Theme) -> Chart:
    """Accuracy with its interval for each number of shots, and the line of who never looks at them.

    Args:
        found: what `engine.prompting.measure.by_shots` returned.
        title: of the task.
        theme: of the browser.
    """
    rows = found["rows"]
    shots, right = (np.array([row[key] for row in rows], dtype=float) for key in ("shots", "accuracy"))
    low, high = (np.array([row["ci95"][end] for row in rows]) for end in (0, 1))
    tone = colour("additive", theme)
    ends = f"{right[0]:.0%} with {rows[0]['shots']} shots, {right[-1]:.0%} with {rows[-1]['shots']}"
    return Chart(
        name=f"shots-{found['task']}",
        title=f"{title}: accuracy against shots (n = {found['questions']})",
        x="solved questions in front (shots)",
        y="share right, 95 % interval (higher is better)",
        series=(
            level(found["naive_way"], found["naive"], colour("guide", theme), (2, 3)),
            Series(found["model"], shots, right, tone),
            Series(
                "95 % interval", shots, right, tone, "points", marker="circle", low=low, high=high,
                labels=tuple(f"{row['correct']} of {row['total']}" for row in rows),
            ),
        ),
        alt=f"{found['model']}: {ends}; {found['naive_way']} gives {found['naive']:.0%}.",
        y_range=(0.0, 1.0),
        y_format=".0%",
        height=340,
    )  # fmt: skip
