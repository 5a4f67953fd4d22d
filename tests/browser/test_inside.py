"""The views inside selective methods and methods that take turns, live and finished, in both themes."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_plane_is_watched_and_played_and_turns_are_shown(lab, visit, scheme):
    """Live the points come step by step, afterwards every recorded moment is there; a raster shows turns of layers."""
    steps = 120 if scheme == "light" else 60
    plane = lab.submit("id3", steps=steps)
    turns = lab.submit({"name": "lisa", "layers": 1, "interval": 9}, budget=None, steps=steps)
    one = visit(scheme, color_scheme=scheme)
    one.open(f"run?run={plane}&view=plane")
    one.sees("Decision plane, after step")
    one.shot("live")
    assert lab.over(plane).state == "finished"
    one.open(f"run?run={plane}&view=plane&t=1")
    one.sees("Decision plane, after step 1")
    one.shot("first")
    one.open(f"run?run={plane}&view=plane&t={steps}")
    one.sees(f"Decision plane, after step {steps}")
    one.sees("where the last chosen weight lies")
    one.shot("last")
    assert lab.over(turns).state == "finished"
    one.open(f"run?run={turns}&view=layers")
    one.sees(f"Layers that train, over {steps} steps")
    one.shot("turns")
