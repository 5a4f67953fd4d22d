"""Loss and accuracy over steps, with the two lines every accuracy must be read against."""

from __future__ import annotations

from typing import Any

import numpy as np

from pages.parts.figures.chart import Chart, Scalars, Series, level, shown_step, smoothed
from pages.parts.figures.palette import Style, Theme, colour

SMOOTHING = 0.9
_NOTHING = (np.empty(0), np.empty(0))


def loss_chart(scalars: Scalars, steps: int, style: Style, theme: Theme, at: int | None = None) -> Chart:
    """Training loss, raw and smoothed, and validation loss."""
    x, y = scalars.get("train/loss", _NOTHING)
    u, v = scalars.get("validation/loss", _NOTHING)
    latest = f"Training loss {smoothed(y, SMOOTHING)[-1]:.3f} at step {x[-1]:,.0f}." if len(y) else "No loss yet."
    return Chart(
        name="loss",
        title="Loss",
        x="step",
        y="cross entropy, nats (lower is better)",
        alt=latest + (f" Validation loss {v[-1]:.3f}." if len(v) else ""),
        series=(
            Series("each batch", x, y, style.colour, faint=True),
            Series(f"smoothed {SMOOTHING:g}", x, smoothed(y, SMOOTHING), style.colour),
            Series("validation", u, v, colour("baseline", theme), dash=(6, 3), marker="circle"),
            *([] if at is None else [shown_step(at, theme)]),
        ),
        x_range=(0, steps),
    )


def accuracy_chart(
    scalars: Scalars,
    baseline: dict[str, Any],
    steps: int,
    style: Style,
    theme: Theme,
    at: int | None = None,
    part: str = "",
) -> Chart:
    """Training and validation accuracy, with the majority class and the untrained model as guides.

    Args:
        scalars: of the run, up to the moment shown.
        baseline: accuracy of the majority class and at step 0.
        steps: end of the axis.
        style: the method's.
        theme: of the browser.
        at: step of a guide.
        part: which part of the validation examples the curve is about, ``256 of 816``; empty for all.
    """
    x, y = scalars.get("train/accuracy", _NOTHING)
    u, v = scalars.get("validation/accuracy", _NOTHING)
    majority = baseline.get("majority")
    step0 = baseline.get("step0")
    guide = colour("guide", theme)
    on = f", on the same {part} validation examples throughout" if part else ""
    latest = f"Validation accuracy {v[-1]:.1%} at step {u[-1]:,.0f}{on}." if len(v) else "No accuracy yet."
    against = f" The largest class alone gives {majority:.1%}." if majority is not None else ""
    return Chart(
        name="accuracy",
        title="Accuracy",
        x="step",
        y="share right (higher is better)",
        alt=latest + against,
        series=(
            level("largest class", majority, guide, (2, 3)),
            level("untrained", step0, guide, (8, 4)),
            Series("training", x, smoothed(y, SMOOTHING), style.colour, faint=True),
            Series(f"validation, {part}" if part else "validation", u, v, style.colour, marker=style.marker),
            *([] if at is None else [shown_step(at, theme)]),
        ),
        x_range=(0, steps),
        y_range=_accuracy_range(majority, step0, y, v),
        y_format=".0%",
    )


def _accuracy_range(majority: float | None, step0: float | None, *curves: np.ndarray) -> tuple[float, float]:
    """From just below the lowest guide or measured value to 1, in steps of ten points."""
    lows = [value for value in (majority, step0) if value is not None]
    lows += [float(np.min(smoothed(curve, SMOOTHING))) for curve in curves if len(curve)]
    return max(0.0, np.floor(10 * (min(lows, default=0.5) - 0.02)) / 10), 1.0
