"""The decision plane: weights by the size of their value and of their gradient, chosen and not, with the boundary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.probes.recorded import Plane
from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.palette import Style, Theme, colour

SMALLEST, LARGEST = 10.0, 150.0
"""Square pixels of a point for one weight, and for the most in any bin."""
_NAMES = {"rest": "not chosen", "chosen": "chosen before", "new": "chosen in this step"}
Ends = tuple[tuple[float, float], tuple[float, float]]


def plane_chart(plane: Plane, ends: Ends, most: int, style: Style, theme: Theme) -> Chart:
    """One recorded moment: a point per bin, its size the logarithm of how many weights are there.

    Args:
        plane: the moment.
        ends: of both axes, the same all through a run.
        most: weights in the fullest bin of the run.
        style: the method's.
        theme: of the browser.
    """
    first = plane.examples > 0
    looks = {
        "rest": (colour("guide", theme), "circle"),
        "chosen": (style.colour, style.marker),
        "new": (colour("alert", theme), "cross"),
    }
    names = _NAMES | ({"chosen": "chosen"} if first or not plane.tables["new"].any() else {})
    series = [_points(plane, name, names[name], *looks[name], most) for name in ("rest", "chosen", "new")]
    x, y = plane.line()
    return Chart(
        name="plane",
        title=f"Decision plane, {'before training' if first else f'after step {plane.step:,}'}",
        x="|weight| (log)",
        y=_gradient(plane),
        alt=_sentence(plane),
        series=(*series, Series("boundary", x, y, colour("baseline", theme), dash=(6, 3))),
        x_range=ends[0],
        y_range=ends[1],
        log_x=True,
        log_y=True,
        x_format=".0e",
        y_format=".0e",
        height=430,
    )


def ends_of(planes: Sequence[Plane]) -> tuple[Ends, int]:
    """Ends of both axes that hold all moments of a run, and the fullest bin's weights."""
    total = np.sum([sum(plane.tables.values()) for plane in planes], axis=0)
    most = max((int(table.max()) for plane in planes for table in plane.tables.values()), default=1)
    rows, columns = (np.flatnonzero(total.any(axis=axis)) for axis in (1, 0))
    first = planes[0]
    if not len(rows):
        return ((first.weights[0], first.weights[-1]), (first.gradients[0], first.gradients[-1])), 1

    def between(edges: np.ndarray, places: np.ndarray) -> tuple[float, float]:
        return float(edges[places[0]]), float(edges[places[-1] + 1])

    return (between(first.weights, columns), between(first.gradients, rows)), max(1, most)


def note_of(plane: Plane) -> str:
    """What has no place in the picture."""
    rest, chosen = plane.off["rest"], plane.off["chosen"] + plane.off["new"]
    parts = []
    if rest or chosen:
        parts.append(
            f"Not shown, as value or gradient is exactly 0 or too small: {rest:,} weights that are not chosen and "
            f"{chosen:,} that are."
        )
    if plane.unseen:
        parts.append(f"{plane.unseen:,} more lie in tensors without any chosen weight: no gradient is computed there.")
    return " ".join(parts).replace("of these chosen", "chosen")


def _points(plane: Plane, name: str, title: str, tone: str, marker: str, most: int) -> Series:
    counts = plane.tables[name]
    y, x = np.nonzero(counts)
    held = counts[y, x]
    w, g = plane.weights, plane.gradients
    scale = np.log1p(held) / np.log1p(most)
    return Series(
        title,
        np.sqrt(w[x] * w[x + 1]),
        np.sqrt(g[y] * g[y + 1]),
        tone,
        "points",
        marker=marker,
        sizes=SMALLEST + (LARGEST - SMALLEST) * scale,
        labels=tuple(f"{count:,} weights" if count > 1 else "1 weight" for count in held.tolist()),
    )


def _gradient(plane: Plane) -> str:
    if not plane.examples:
        return "|gradient| of the step's batch (log)"
    kind = "root mean square" if plane.squared else "mean"
    return f"|gradient|, {kind} of {plane.examples:,} examples (log)"


def _sentence(plane: Plane) -> str:
    """What the picture says, in words."""
    counts = {name: int(table.sum()) for name, table in plane.tables.items()}
    shown = f"{counts['rest']:,} weights not chosen and {counts['chosen'] + counts['new']:,} chosen are shown."
    if counts["new"]:
        shown += f" {counts['new']:,} of the latter were chosen in this step."
    if plane.boundary is None:
        return f"{shown} No single line parts them: this method does not rank all weights together."
    if plane.threshold is None and not plane.boundary["power"]:
        return f"{shown} No boundary: all chosen weights are exactly 0."
    if plane.threshold is None:
        if plane.boundary["moment"] == "start" and not plane.examples:
            return f"{shown} The boundary was drawn in gradients before training: it stands in the first frame."
        return f"{shown} No boundary: nothing was chosen by score in this step."
    if plane.boundary["moment"] == "start" and plane.step > 1:
        return f"{shown} The boundary is where the last chosen weight lay when the mask was made; many have moved."
    return f"{shown} The boundary is where the last chosen weight lies."
