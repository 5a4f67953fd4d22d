"""A greedy search for layers: what each trial of each round came to."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from engine.probes.found import Trials
from pages.parts.figures.chart import Chart, Series
from pages.parts.figures.palette import Style, Theme, scale

SPREAD = 0.5
"""Width of all rounds together at one layer, in layers."""
_MARKERS = ("circle", "square", "diamond", "triangle-down", "cross", "triangle-up")


def trials_chart(trials: Trials, style: Style, theme: Theme) -> Chart:
    """Held-out loss of every trial by layer, round beside round; bars say what chance may do to the difference."""
    count = len(trials.rounds)
    tones, markers = scale(theme), [marker for marker in _MARKERS if marker != style.marker]
    series: list[Series] = []
    chosen: list[tuple[float, float, str]] = []
    for place, each in enumerate(trials.rounds):
        shift = SPREAD * (place / (count - 1) - 0.5) if count > 1 else 0.0
        others = [trial for trial in each.trials if trial.layer != each.chosen]
        ends = [trial.interval or (np.nan, np.nan) for trial in others]
        best = np.array([trial.loss - trial.behind for trial in others])
        series.append(
            Series(
                f"round {place + 1}",
                np.array([trial.layer + shift for trial in others]),
                np.array([trial.loss for trial in others]),
                tones[3 + round(6 * place / max(1, count - 1))],  # the lowest lie near the background
                "points",
                marker=markers[place % len(markers)],
                low=best + [low for low, _ in ends],
                high=best + [high for _, high in ends],
                labels=tuple(f"layer {trial.layer}, round {place + 1}" for trial in others),
                sizes=np.full(len(others), 70.0),
            )
        )
        chosen += [
            (trial.layer + shift, trial.loss, f"layer {trial.layer}, chosen in round {place + 1}")
            for trial in each.trials
            if trial.layer == each.chosen
        ]
    x, y, labels = zip(*chosen, strict=True) if chosen else ((), (), ())
    taken = Series(
        "chosen", np.array(x), np.array(y), style.colour, "points", marker=style.marker, labels=labels,
        sizes=np.full(len(x), 170.0), names=tuple(f"round {number + 1}" for number in range(len(x))),
    )  # fmt: skip
    layers = [trial.layer for each in trials.rounds for trial in each.trials]
    return Chart(
        name="trials",
        title=f"Trials of layers, round by round (n = {trials.held:,} held-out examples)",
        x="layer that trained beside those chosen before",
        y="held-out loss, mean in nats (lower is better)",
        alt=_sentence(trials),
        series=(*series, taken),
        x_range=(-0.5, max(layers, default=0) + 0.5),
        whole_x=True,
        x_format="d",
        height=380,
        rows=lambda: trials_table(trials),
    )


def trials_table(trials: Trials) -> pd.DataFrame:
    """Every trial with its place behind the chosen one."""
    return pd.DataFrame(
        [
            {
                "round": number,
                "layer": trial.layer,
                "held-out loss": trial.loss,
                "behind the chosen": trial.behind,
                "95 % from": trial.interval[0] if trial.interval else np.nan,
                "95 % to": trial.interval[1] if trial.interval else np.nan,
                "n": trials.held,
                "chosen": trial.layer == each.chosen,
            }
            for number, each in enumerate(trials.rounds, 1)
            for trial in each.trials
        ]
    )


def trials_note(trials: Trials) -> str:
    """Where the numbers come from, and what the bars mean."""
    return (
        f"Each trial trained the layers chosen so far, one more, and the head for {trials.steps:,} steps of up to "
        f"{trials.batch:,} of {trials.fit:,} training examples at learning rate {trials.rate:g}, and was measured on "
        f"{trials.held:,} others. Bars are 95 % intervals of the difference from the layer chosen in the same round, "
        "paired by example, each by itself: where one reaches down to the chosen layer's loss, these examples cannot "
        "tell the two apart."
    )


def _sentence(trials: Trials) -> str:
    parts = []
    for number, each in enumerate(trials.rounds, 1):
        rivals = ", ".join(str(layer) for layer in each.close)
        said = f" (these examples cannot tell it from {rivals})" if rivals else ""
        failed = f" ({each.failed} without a finite loss)" if each.failed else ""
        parts.append(f"in round {number} layer {each.chosen}{said}{failed}")
    lost = [trial.loss for each in trials.rounds for trial in each.trials if trial.layer == each.chosen]
    rose = [str(number) for number, (before, after) in enumerate(pairwise(lost), 2) if after > before]
    more = (
        f" The loss rose in round {', '.join(rose)}: in so short a trial the layer added did not help." if rose else ""
    )
    return f"Chosen: {', '.join(parts)}.{more}"
