"""The views inside selective methods and methods that take turns, live and finished, in both themes."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
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


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_methods_chose_layers_by_is_shown_live_and_afterwards(lab, visit, scheme):
    """The path is there from the first step, in two renderers that agree; trials and importance follow."""
    steps = 300 if scheme == "light" else 200
    path = lab.submit({"name": "rdp_lora", "layers": 1, "rank": 2}, budget=None, steps=steps)
    trials = lab.submit({"name": "subtuning", "samples": 32, "trial_steps": 3}, budget=None, steps=steps)
    learnt = lab.submit({"name": "ist", "rate": 1000.0}, budget=None, steps=steps)
    one = visit(scheme, color_scheme=scheme)
    one.open(f"run?run={path}&view=path")
    one.sees("Path of the mean hidden state (n = 64 examples")
    one.shot("path-live")
    assert lab.over(path).state == "finished"
    one.open(f"run?run={path}&view=path")
    one.sees("Any tolerance from")
    one.shot("path")
    assert lab.over(trials).state == "finished"
    one.open(f"run?run={trials}&view=trials")
    one.sees("Chosen: in round 1 layer")
    one.shot("trials")
    assert lab.over(learnt).state == "finished"
    one.open(f"run?run={learnt}&view=importance")
    one.sees("is the most important")
    one.shot("importance")
