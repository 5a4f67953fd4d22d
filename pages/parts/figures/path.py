"""The path of the hidden states through the layers, its corners that were kept, and how far they stood out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from engine.probes.found import Path
from pages.parts.figures.chart import Chart, Series, level
from pages.parts.figures.palette import Style, Theme, colour

MARGIN = 0.08
"""Share of the path's extent left free around it."""
NAMED = 12
"""Of a model with more layers than this only the chosen ones are named in the picture: names would cover each other."""


def polyline_chart(path: Path, style: Style, theme: Theme) -> Chart:
    """The path in the plane of its first two principal components, and the simplified path through its corners."""
    x, y = path.places.T
    numbers = np.arange(path.layers + 1)
    kept = np.isin(numbers - 1, path.chosen)
    first, second = path.shares

    def points(title: str, which: np.ndarray, tone: str, marker: str, size: float, *, named: bool = True) -> Series:
        labels = tuple(_told(path, int(vertex)) for vertex in numbers[which])
        names = tuple(_short(int(vertex)) for vertex in numbers[which]) if named else ()
        sizes = np.full(int(which.sum()), size)
        return Series(title, x[which], y[which], tone, "points", marker=marker, sizes=sizes, labels=labels, names=names)

    grey, plain = colour("guide", theme), colour("baseline", theme)
    return Chart(
        name="path",
        title=f"Path of the mean hidden state (n = {path.examples:,} examples, {path.tokens:,} tokens)",
        x=f"first principal component, {_unit(path)} ({first:.0%} of the variance)",
        y=f"second, same unit ({second:.0%})",
        alt=_sentence(path),
        series=(
            Series("path through all layers", x, y, grey),
            Series("simplified path", x[path.corners], y[path.corners], style.colour, dash=(6, 4)),
            points("layer without adapters", ~kept & (numbers > 0), grey, "circle", 60, named=path.layers <= NAMED),
            points("what goes in", numbers == 0, plain, "square", 60),
            points("layer with adapters", kept, style.colour, style.marker, 150),
        ),
        x_range=_around(x),
        y_range=_around(y),
        height=380,
        spatial=True,
        rows=lambda: path_table(path),
    )


def distance_chart(path: Path, style: Style, theme: Theme) -> Chart:
    """Up to which tolerance each corner stays: its distance from the line divided there, or an earlier one's."""
    layers = np.arange(path.layers)
    distance, tolerance = path.distance[1:], path.tolerance[1:]
    inner = np.isfinite(tolerance)
    kept = np.isin(layers, path.chosen)
    low, high = path.span

    def stays(title: str, which: np.ndarray, tone: str, marker: str, size: float, *, named: bool = True) -> Series:
        labels = tuple(_told(path, int(layer) + 1) for layer in layers[which])
        sizes = np.full(int(which.sum()), size)
        return Series(
            title, layers[which], tolerance[which], tone, "points", marker=marker, sizes=sizes, labels=labels,
            names=tuple(f"{value:#.3g}".rstrip(".") for value in tolerance[which]) if named else (),
        )  # fmt: skip

    capped = inner & (distance > tolerance)
    return Chart(
        name="distances",
        title="Up to which tolerance each corner stays",
        x="layer that puts the corner out",
        y=f"distance in {path.hidden:,} dimensions, {_unit(path)}",
        alt=_threshold(path),
        series=(
            level("leaves just these corners", low if low < high else None, colour("guide", theme), (4, 4)),
            Series(
                "its own distance, if larger",
                layers[capped],
                distance[capped],
                colour("guide", theme),
                "points",
                marker="cross",
                sizes=np.full(int(capped.sum()), 60.0),
                labels=tuple(_told(path, int(layer) + 1) for layer in layers[capped]),
            ),
            stays(
                "without adapters", inner & ~kept, colour("baseline", theme), "circle", 80, named=path.layers <= NAMED
            ),
            stays("with adapters", inner & kept, style.colour, style.marker, 150),
        ),
        x_range=(-0.5, path.layers - 0.5),
        y_range=(0.0, 1.1 * float(np.nanmax(path.distance, initial=1e-9))),
        whole_x=True,
        x_format="d",
        height=380,
        rows=lambda: path_table(path),
    )


def path_note(path: Path) -> str:
    """Where the numbers come from."""
    scaled = ", each then scaled to length one" if path.normalised else ""
    return (
        f"Measured before the first step, with the base model as it is: hidden states averaged over {path.tokens:,} "
        f"tokens of {path.examples:,} training examples{scaled}. The method looks at distances in all {path.hidden:,} "
        "dimensions; the plane is drawn for the eye only, with the same scale on both axes. Its numbers are layers, "
        "each at what it puts out."
    )


def path_table(path: Path) -> pd.DataFrame:
    """Every vertex with what the simplification saw of it."""
    return pd.DataFrame(
        {
            "vertex": [_vertex(vertex) for vertex in range(path.layers + 1)],
            "first component": path.places[:, 0],
            "second component": path.places[:, 1],
            "distance from the line": path.distance,
            "line from": ["" if line is None else _vertex(line[0]) for line in path.lines],
            "line to": ["" if line is None else _vertex(line[1]) for line in path.lines],
            "stays up to tolerance": np.where(np.isinf(path.tolerance), np.nan, path.tolerance),
            "in the simplified path": [vertex in path.corners for vertex in range(path.layers + 1)],
            "adapters": [vertex - 1 in path.chosen for vertex in range(path.layers + 1)],
        }
    )


def _vertex(vertex: int) -> str:
    return f"after layer {vertex - 1}" if vertex else "before layer 0"


def _told(path: Path, vertex: int) -> str:
    """A vertex with what the simplification saw of it."""
    line = path.lines[vertex]
    if line is None:
        return f"{_vertex(vertex)}, an end of the path"
    return f"{_vertex(vertex)}, {path.distance[vertex]:.3g} from the line {_short(line[0])} to {_short(line[1])}"


def _short(vertex: int) -> str:
    return str(vertex - 1) if vertex else "in"


def _unit(path: Path) -> str:
    return "hidden states of length one" if path.normalised else "units of hidden states"


def _around(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = MARGIN * (high - low or 1.0)
    return low - room, high + room


def _listed(layers: tuple[int, ...]) -> str:
    names = [str(layer) for layer in layers]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _sentence(path: Path) -> str:
    chosen = f"Layer {path.chosen[0]} gets" if len(path.chosen) == 1 else f"Layers {_listed(path.chosen)} get"
    return f"{chosen} adapters. The plane holds {sum(path.shares):.1%} of the variance of the path's vertices."


def _threshold(path: Path) -> str:
    low, high = path.span
    last = "The last layer is an end of the path, which is always kept"
    last += "." if path.layers - 1 in path.chosen else ", but by the settings it gets no adapters for that."
    if np.isinf(high):
        return f"No corner between the ends is kept: any tolerance from {low:.3g} does so. {last}"
    if low >= high:
        return f"Corners that stand out equally were parted by their order. {last}"
    return f"Any tolerance from {low:.3g} to below {high:.3g} leaves just these corners. {last}"
