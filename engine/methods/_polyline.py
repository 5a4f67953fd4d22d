"""A path through a space, and what Ramer, Douglas and Peucker's simplification makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Polyline:
    """The path of the mean hidden state through the model, and what of it was kept.

    Attributes:
        points: float64 (layers + 1, hidden): before the first layer, then after each.
        tolerance: float64 (layers + 1,): up to which distance a simplified path still has the vertex;
            infinite at both ends.
        layers: the layers that were chosen: vertex l + 1 is what layer l puts out.
    """

    points: np.ndarray
    tolerance: np.ndarray
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """One division of a stretch of the path at the vertex that lies farthest from its straight line.

    Attributes:
        vertex: where.
        first, last: vertices between which the line ran.
        distance: of the vertex from it.
        tolerance: up to which a simplified path still has the vertex: its own distance, or that of a
            division before it, where that is smaller.
    """

    vertex: int
    first: int
    last: int
    distance: float
    tolerance: float


def splits(points: np.ndarray) -> list[Split]:
    """Every division that the simplification can make, one for each vertex between the ends, in their order.

    Args:
        points: float64 (points, dimensions), at least two.
    """
    found: list[Split] = []

    def split(first: int, last: int, limit: float) -> None:
        if last - first < 2:
            return
        distances = _from_segment(points[first + 1 : last], points[first], points[last])
        middle = first + 1 + int(distances.argmax())
        distance = float(distances.max())
        tolerance = min(distance, limit)
        found.append(Split(middle, first, last, distance, tolerance))
        split(first, middle, tolerance)
        split(middle, last, tolerance)

    split(0, len(points) - 1, np.inf)
    return sorted(found, key=lambda each: each.vertex)


def tolerances(points: np.ndarray) -> np.ndarray:
    """Up to which tolerance the simplification keeps each point; infinite at both ends."""
    return np.array([np.inf, *(each.tolerance for each in splits(points)), np.inf])


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Points in the plane of their first two principal components, and the share of their variance in each.

    Components have no sign of their own: the path ends to the right of where it begins, and its point
    farthest from the horizontal axis lies above it.
    """
    centred = points - points.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(points), 2))
    shares = np.zeros(2)
    most = min(2, len(values))
    places[:, :most] = centred @ directions[:most].T
    if total := float((values**2).sum()):
        shares[:most] = values[:most] ** 2 / total
    farthest = places[np.abs(places[:, 1]).argmax(), 1]
    places *= [1.0 if places[-1, 0] >= places[0, 0] else -1.0, 1.0 if farthest >= 0 else -1.0]
    return places, (float(shares[0]), float(shares[1]))


def _from_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance of each point from the straight line between two others, which ends at them."""
    along = end - start
    length = float(along @ along)
    share = ((points - start) @ along / length).clip(0, 1) if length else np.zeros(len(points))
    distances: np.ndarray = np.linalg.norm(points - start - share[:, None] * along, axis=1)
    return distances
