"""The confusion matrix of a finished run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pages.parts.figures.grid import Cell, Grid, Section, percent


def confusion_grid(counts: np.ndarray, labels: tuple[str, ...]) -> Grid:
    """Rows are the right classes, columns the answers; colour is the share of the row.

    Args:
        counts: int (C, C).
        labels: names of the C classes.
    """
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    share = counts / totals
    cells = tuple(
        Cell(
            i,
            j,
            float(share[i, j]),
            f"{counts[i, j]:,}",
            f"{counts[i, j]:,} of {totals[i, 0]:,} ({percent(float(share[i, j]))})",
        )
        for i in range(len(labels))
        for j in range(len(labels))
    )
    right = int(np.trace(counts))
    short = tuple(_cut(label) for label in labels)
    return Grid(
        name="confusion",
        title="Confusion on the test set",
        alt=f"{right:,} of {int(counts.sum()):,} right.",
        high=1.0,
        unit="share of the row (right class)",
        tick=percent,
        sections=(Section(short, short, cells, groups=(("answered", len(labels)),)),),
        table=lambda: pd.DataFrame(counts, index=pd.Index(labels, name="right class"), columns=labels).reset_index(),
    )


def _cut(label: str, length: int = 18) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"
