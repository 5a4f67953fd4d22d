"""Cost over steps: time per step, memory, power."""

from __future__ import annotations

import numpy as np

from pages.parts.figures.chart import Chart, Scalars, Series
from pages.parts.figures.palette import Style

_WHAT = {
    "step/seconds": ("step-time", "Time per step", "milliseconds", 1e3, ",.0f"),
    "cost/memory_bytes": ("memory", "Peak memory", "MiB", 1 / 2**20, ",.0f"),
    "cost/power_watts": ("power", "Power", "watts", 1.0, ",.0f"),
    "cost/energy_joules": ("energy", "Energy so far", "joules", 1.0, ",.0f"),
}


def cost_charts(scalars: Scalars, steps: int, style: Style) -> list[Chart]:
    """One chart for each cost that the device reported."""
    return [_chart(key, *scalars[key], steps, style) for key in _WHAT if key in scalars and len(scalars[key][0])]


def _chart(key: str, x: np.ndarray, y: np.ndarray, steps: int, style: Style) -> Chart:
    name, title, unit, factor, form = _WHAT[key]
    values = y * factor
    return Chart(
        name=name,
        title=title,
        x="step",
        y=unit,
        alt=f"{title}: last {values[-1]:,.4g} {unit}, median {np.median(values):,.4g}.",
        series=(Series(title.lower(), x, values, style.colour),),
        x_range=(0, steps),
        y_range=(0, 1.1 * float(np.max(values)) or 1.0),
        y_format=form,
        height=220,
    )
