"""Figures are pure: what goes in must come out, in both renderers and in the table behind them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from engine.methods.registry import methods
from engine.probes.found import Importance, Path, Round, Score, Scores, Trial, Trials
from engine.probes.recorded import Plane, Turns
from pages.parts.figures.change import change_grid, correlation_sentence, path_chart, scatter_chart
from pages.parts.figures.chart import Chart, Series, smoothed
from pages.parts.figures.comparison import Curve, Point, overlay_chart, pareto_chart
from pages.parts.figures.confusion import confusion_grid
from pages.parts.figures.cost import cost_charts
from pages.parts.figures.curves import accuracy_chart, loss_chart
from pages.parts.figures.grid import ceiling, decade, percent
from pages.parts.figures.importance import importance_grid, importance_note
from pages.parts.figures.layers import sections
from pages.parts.figures.mask import block_counts, block_of, entries_of, growth_chart, mask_grid, matrix_grid
from pages.parts.figures.palette import Style, colour, scale, style_of, styles_together
from pages.parts.figures.path import distance_chart, path_note, path_table, polyline_chart
from pages.parts.figures.plane import ends_of, note_of, plane_chart
from pages.parts.figures.plotly import plotly_figure
from pages.parts.figures.rank import rank_grid, rank_timeline, rank_warning, schedule_chart
from pages.parts.figures.scores import scores_chart, scores_note
from pages.parts.figures.trials import trials_chart, trials_note, trials_table
from pages.parts.figures.turns import turns_grid
from pages.parts.figures.vega import vega_spec

STYLE = Style("#C94F00", "triangle-up", (6, 3))


def row(name: str, layer: int, role: str, part: str, *shape: int) -> dict:
    size = int(np.prod(shape))
    return {"name": name, "layer": layer, "role": role, "part": part, "shape": list(shape), "eligible": size}


LAYOUT = [
    row("tokens", -1, "token", "weight", 10, 4),
    row("q0", 0, "q", "weight", 4, 4),
    row("q0b", 0, "q", "bias", 4),
    row("q1", 1, "q", "weight", 4, 4),
    row("up1", 1, "up", "weight", 8, 4),
    row("pool", 2, "pooler", "weight", 4, 4),
]


def curve(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1), np.array(values)


def test_smoothing_has_no_bias_at_its_start():
    assert smoothed(np.full(5, 3.0), 0.9) == pytest.approx(np.full(5, 3.0))
    assert smoothed(np.array([1.0, 2.0]), 0.5) == pytest.approx([1.0, (0.25 + 1.0) / 0.75])


def test_both_renderers_and_the_table_show_the_same_numbers():
    scalars = {"train/loss": curve(0.9, 0.7, 0.6), "validation/loss": curve(0.8, 0.65)}
    chart = loss_chart(scalars, 10, STYLE, "light", at=2)
    table = chart.table()
    assert table[table.series == "each batch"].y.tolist() == [0.9, 0.7, 0.6]
    figure = plotly_figure(chart)
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert drawn["each batch"] == [0.9, 0.7, 0.6]
    assert drawn["validation"] == [0.8, 0.65]
    assert figure.layout.shapes[0].x0 == 2
    domain = vega_spec(chart)["layer"][0]["encoding"]["color"]["scale"]
    assert dict(zip(domain["domain"], domain["range"], strict=True))["each batch"] == STYLE.colour + "59"


def test_a_chart_without_any_number_is_still_a_chart():
    chart = accuracy_chart({}, {}, 10, STYLE, "dark")
    assert chart.table().empty
    assert vega_spec(chart)["layer"]
    assert len(plotly_figure(chart).data) == 0


def test_live_spec_stays_the_same_while_numbers_come_in():
    # The browser rebuilds a chart whose spec changes; only the data may.
    first = loss_chart({"train/loss": curve(0.9, 0.7), "validation/loss": curve(0.8)}, 10, STYLE, "light")
    later = loss_chart({"train/loss": curve(0.9, 0.7, 0.2), "validation/loss": curve(0.8, 0.3)}, 10, STYLE, "light")
    assert vega_spec(first) == vega_spec(later)


def test_accuracy_is_drawn_against_the_largest_class_and_the_untrained_model():
    part = accuracy_chart({"validation/accuracy": curve(0.6)}, {}, 5, STYLE, "light", part="256 of 816")
    assert part.shown[-1].name == "validation, 256 of 816"
    assert "60.0% at step 1, on the same 256 of 816 validation examples throughout" in part.alt
    chart = accuracy_chart({"validation/accuracy": curve(0.6)}, {"majority": 0.52, "step0": 0.48}, 5, STYLE, "light")
    levels = {series.name: series.y[0] for series in chart.shown if series.kind == "level"}
    assert levels == {"largest class": 0.52, "untrained": 0.48}
    assert chart.y_range is not None
    assert chart.y_range[0] <= 0.48
    assert "52.0%" in chart.alt


def test_text_in_plotly_labels_is_not_markup():
    series = Series(
        "<b>x</b>", np.array([1]), np.array([2]), "#000000", "points", labels=("<script>alert(1)</script>",)
    )
    figure = plotly_figure(Chart("n", "t", "x", "y", (series,), "alt"))
    assert figure.data[0].hovertext == ("&lt;script&gt;alert(1)&lt;/script&gt;",)
    assert "<b>x" not in figure.data[0].hovertemplate


def test_mask_grid_places_every_tensor_and_its_share():
    counts = np.array([4, 8, 1, 0, 16, 2])
    grid = mask_grid(LAYOUT, counts, 2, 7)
    before, blocks, after = grid.sections
    assert (before.rows, after.rows) == (("embeddings",), ("top",))
    assert blocks.rows == ("layer 0", "layer 1")
    assert blocks.groups == (("query", 2), ("up", 1))
    shares = {cell.id: cell.value for section in grid.sections for cell in section.cells}
    assert shares == pytest.approx({"0": 0.1, "1": 0.5, "2": 0.25, "3": 0, "4": 0.5, "5": 0.125})
    assert "31 entries" in grid.alt
    assert grid.data()["selected"].tolist() == counts.tolist()


def test_sections_leave_out_part_titles_when_there_is_one_part_only():
    only = [row for row in LAYOUT if row["part"] == "weight"]
    grid = mask_grid(only, np.zeros(len(only), int), 2, 0)
    assert all(set(section.columns) == {""} for section in grid.sections)
    assert sections([], 2, lambda *_: None) == ()


def test_matrix_grid_counts_every_selected_entry_once():
    index = np.array([0, 1, 5, 4 * 384, 383 * 384 + 383])
    grid = matrix_grid(row("w", 0, "q", "weight", 384, 384), 6, index, index * 0, 3)
    assert grid.dense is not None
    assert grid.dense.counts.sum() == 5
    assert grid.dense.block == (4, 4)
    assert grid.dense.counts[0, 0] == 2
    assert grid.data()["row"].tolist() == [0, 0, 0, 4, 383]


def test_blocks_cover_matrices_of_any_shape():
    for shape in [(30522, 384), (7, 3), (1, 1), (384, 1536)]:
        block = block_of(shape)
        last = shape[0] * shape[1] - 1
        counts = block_counts(np.array([last]), shape, block)
        assert counts.sum() == counts[-1, -1] == 1


def test_entries_of_one_tensor_are_the_first_that_a_frame_counted():
    selection = {"tensor": np.array([1, 0, 1, 1]), "index": np.array([7, 3, 2, 9]), "step": np.array([0, 0, 1, 2])}
    index, steps = entries_of(selection, 1, 2, 9)
    assert index.tolist() == [7, 2]
    assert steps.tolist() == [0, 1]


def test_entries_that_came_later_are_not_in_an_earlier_mask():
    moved = {"tensor": np.array([1, 1, 1]), "index": np.array([7, 2, 9]), "step": np.array([6, 0, 3])}
    assert entries_of(moved, 1, 3, 3)[0].tolist() == [2, 9], "fewer than three: one has left since"
    assert entries_of(moved, 1, 3, 6)[0].tolist() == [7, 2, 9]


def test_growth_is_drawn_against_the_budget():
    chart = growth_chart({"mask/selected": curve(10, 40)}, 50, 10, STYLE, "light")
    assert chart.alt == "40 of 50 selected by step 2."
    assert chart.y_range == (0, pytest.approx(54))


MATRICES = [row("a", 0, "q", "weight", 4, 4), row("b", 1, "v", "weight", 4, 4)]


def test_rank_pictures_show_what_was_given():
    frame = {"allocated": np.array([3, 1]), "active": np.array([3, 0])}
    grid = rank_grid(MATRICES, frame, 6, 2, 9)
    assert [cell.text for cell in grid.sections[0].cells] == ["3", "1"]
    assert "of which 0 in effect" in grid.sections[0].cells[1].hover
    line = rank_timeline(MATRICES, np.arange(200), np.tile([3, 1], (200, 1)), 2)
    assert len(line.sections[0].columns) <= 60
    assert "0 of 2 matrices changed" in line.alt


@pytest.mark.parametrize(
    ("given", "last", "finished", "warned"),
    [
        ([[2, 2], [2, 2]], 40, True, True),
        ([[2, 2], [2, 2]], 60, False, True),
        ([[2, 2], [2, 2]], 20, False, False),
        ([[2, 2], [2, 1]], 40, True, False),
    ],
)
def test_a_warning_appears_when_ranks_never_move(given, last, finished, warned):
    text = rank_warning(np.array([0, last]), np.array(given), 100, finished)
    assert bool(text) == warned


def test_schedule_begins_with_the_first_step():
    # At step 0 every factor is zero; that is no rank that anything was taken from.
    chart = schedule_chart({"rank/active": (np.array([0, 1]), np.array([0.0, 12.0]))}, 5, STYLE, "light")
    assert chart.series[1].y.tolist() == [12.0]


def test_change_is_shown_per_matrix_and_its_correlation_said():
    magnitude, direction = np.array([0.1, 0.2, 0.3]), np.array([0.01, 0.02, 0.03])
    three = [*MATRICES, row("c", 1, "q", "weight", 4, 4)]
    chart = scatter_chart(three, magnitude, direction, 2, 5, "light")
    assert {series.name for series in chart.series} == {"query", "value"}
    assert "r = +1.00" in chart.alt
    assert "Too few" in correlation_sentence(magnitude[:1], direction[:1])
    grid = change_grid(three, magnitude, "relative", 2, 5)
    assert grid.sections[0].cells[0].text == "10%"
    path = path_chart(np.array([0, 5]), np.array([[0, 0], [1, 3]]), np.array([[0, 0], [2, 2]]), 10, STYLE, "light")
    assert path.series[0].y.tolist() == [0, 1]
    assert [trace.mode for trace in plotly_figure(path).data] == ["markers", "markers"], "no line where nobody measured"
    assert "measured 2 times" in path.alt


def test_scores_show_what_trains_and_how_far_it_stands_out():
    rows = (Score(0, 0, 0.1, False), Score(0, 1, -0.2, False), Score(1, 0, 0.5, True), Score(1, 1, 0.3, True))
    scores = Scores("head", "effect: growth of the loss", rows, examples=8, step=3)
    chart = scores_chart(scores, STYLE, "light")
    none, rest, trained = chart.shown
    assert (none.kind, rest.y.tolist(), trained.y.tolist()) == ("level", [0.1, -0.2], [0.5, 0.3])
    assert trained.x == pytest.approx([0.7, 1.3])
    assert trained.labels == ("layer 1, head 0", "layer 1, head 1")
    assert "layer 1, head 1 with 0.3, the first that was not layer 0, head 0 with 0.1" in chart.alt
    assert chart.data()["effect"].tolist() == [0.5, 0.3, 0.1, -0.2]
    assert "after step 3, on 8 training examples" in scores_note(scores)
    layer = Scores("layer", "score", (Score(0, 0, 2.0, True),), examples=8, step=0)
    assert [series.name for series in scores_chart(layer, STYLE, "dark").shown] == ["trained"]
    assert "All 1 train" in scores_chart(layer, STYLE, "dark").alt
    assert "before the first step" in scores_note(layer)


def test_cost_charts_are_of_what_was_reported():
    charts = cost_charts({"step/seconds": curve(0.01, 0.02), "train/loss": curve(1.0)}, 10, STYLE)
    assert [chart.name for chart in charts] == ["step-time"]
    assert charts[0].series[0].y == pytest.approx([10, 20])


def test_confusion_rows_are_the_right_classes():
    grid = confusion_grid(np.array([[8, 2], [0, 0]]), ("bad", "good"))
    assert [cell.value for cell in grid.sections[0].cells] == [0.8, 0.2, 0, 0]
    assert grid.alt == "8 of 10 right."


def test_a_legend_has_room_for_a_line_per_entry_below_the_toolbar():
    def layout(entries: int):
        series = tuple(Series(f"method {n}", np.arange(3), np.arange(3), "#000000") for n in range(entries))
        return plotly_figure(Chart(name="c", title="C", x="x", y="y", series=series, alt="", height=300)).layout

    two, twenty = layout(2), layout(20)
    assert twenty.height - twenty.legend.maxheight >= 300 - 100, "the picture keeps its room in a narrow column"
    assert twenty.legend.maxheight >= 20 * 20
    for found in (two, twenty):
        top = (1 - found.legend.y) * found.height
        assert found.legend.yanchor == "top"
        assert top >= 30, "the toolbar's height"


def test_a_live_legend_has_as_many_columns_as_fit():
    def columns(name: str, width: int) -> int:
        series = tuple(Series(f"{name} {n}", np.arange(3), np.arange(3), "#000000") for n in range(4))
        spec = vega_spec(Chart(name="c", title="C", x="x", y="y", series=series, alt=""))
        said = spec["layer"][0]["encoding"]["color"]["legend"]["columns"]["expr"]
        return eval(said.replace("floor", "math.floor"), {"width": width, "math": math, "max": max, "min": min})

    assert columns("a name of some length", 100) == 1
    assert columns("a name of some length", 450) == 2
    assert columns("up", 450) > 4
    assert columns("up", 4000) == 6


def test_comparison_draws_family_colour_and_method_dash():
    curves = [Curve("A", "lora", ({"validation/accuracy": curve(0.5)},)), Curve("B", "dora", ({},))]
    chart = overlay_chart(curves, "validation/accuracy", "light", majority=0.4)
    assert [series.name for series in chart.shown] == ["largest class", "A"]
    points = [Point("A", "lora", 100, 0.7, 0.6, 0.8), Point("B", "full", 9000, 0.8, None, None)]
    pareto = pareto_chart(points, "dark")
    assert pareto.log_x
    assert [float(series.x[0]) for series in pareto.shown] == [100, 9000]
    assert pareto.alt.startswith("Highest: B")
    assert plotly_figure(pareto).data[0].error_y.array == pytest.approx([0.1])


def test_points_of_one_count_stand_side_by_side_and_the_table_has_the_count():
    points = [Point(str(n), "lora", 5888, 0.7, 0.6, 0.8) for n in range(4)] + [
        Point("B", "full", 90_000, 0.8, None, None)
    ]
    chart = pareto_chart(points, "light")
    *beside, alone = (float(series.x[0]) for series in chart.shown)
    assert alone == 90_000
    assert np.prod(beside) ** (1 / 4) == pytest.approx(5888)
    low, high = np.log10(chart.x_range)
    assert np.diff(np.log10(beside)) == pytest.approx([0.03 * (high - low)] * 3)
    assert high - low == pytest.approx(2)
    assert "side by side" in chart.x
    assert chart.data()["trained parameters"].tolist() == [5888] * 4 + [90_000]
    assert "5,888 trained" in plotly_figure(chart).data[0].hovertext[0]


def test_methods_of_one_family_share_a_colour_and_differ_by_marker_and_dash():
    by_family: dict[str, set] = {}
    for name, method in methods().items():
        style = style_of(name, "light")
        assert style.colour == colour(method.family, "light")
        seen = by_family.setdefault(method.family, set())
        assert (style.marker, style.dash) not in seen, name
        seen.add((style.marker, style.dash))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_one_picture_nothing_of_a_family_looks_alike(theme):
    selective = sorted(name for name, method in methods().items() if method.family == "selective")
    for start in range(0, len(selective), 8):
        names = [*selective[start : start + 6], selective[start], "lora", "lora"]
        styles = styles_together(names, theme)
        for family in (styles[:7], styles[7:]):
            assert len({style.marker for style in family}) == len({style.dash for style in family}) == len(family)
            assert all(one.colour != other.colour for one, other in pairwise(family))
    back = {"light": "#FFFFFF", "dark": "#12161C"}[theme]
    assert min(contrast(style.colour, back) for style in styles) >= 3


def test_in_one_picture_methods_keep_their_own_look_where_they_can():
    lora, again, adalora = styles_together(["lora", "lora", "adalora"], "light")
    assert (lora, adalora.marker, adalora.dash) == (style_of("lora", "light"), "square", (6, 3))
    assert again.marker not in (lora.marker, adalora.marker)
    assert len(styles_together(["id3"] * 100, "dark")) == 100


def test_seeds_of_one_spec_are_one_line_between_the_lowest_and_the_highest():
    seeds = [{"validation/accuracy": curve(0.5, 0.6), "train/loss": curve(1.0, 0.5)},
             {"validation/accuracy": curve(0.7, 0.9), "train/loss": curve(2.0, 0.5)}]  # fmt: skip
    (line,) = overlay_chart([Curve("A", "lora", tuple(seeds))], "validation/accuracy", "light").shown
    assert line.name == "A, mean of 2 seeds"
    assert line.y == pytest.approx([0.6, 0.75])
    assert (line.low.tolist(), line.high.tolist(), line.marker) == ([0.5, 0.6], [0.7, 0.9], "circle")
    (loss,) = overlay_chart([Curve("A", "lora", tuple(seeds))], "train/loss", "light").shown
    assert loss.y[0] == pytest.approx(1.5)
    assert (loss.low, loss.marker) == (None, "")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_stand_out_from_the_page(theme):
    back = {"light": "#FFFFFF", "dark": "#12161C"}[theme]
    for name in ("baseline", "additive", "selective", "reparameterised", "mixture", "zeroth-order"):
        assert contrast(colour(name, theme), back) >= 3
    assert len(scale(theme)) == 10


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours."""

    def luminance(hexed: str) -> float:
        parts = [int(hexed[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_scales_end_at_round_numbers():
    assert [ceiling(v) for v in (0, 0.03, 0.2, 7, 10)] == [1.0, 0.05, 0.2, 10, 10]
    assert [decade(v) for v in (0, 0.004, 0.01, 0.3, 1.0)] == pytest.approx([0.01, 0.01, 0.01, 1, 1])


def test_shares_are_written_with_the_digits_they_need():
    assert [percent(v) for v in (0, 1, 0.12345, 0.012345, 0.00012)] == ["0", "100%", "12%", "1.2%", "0.012%"]


def test_payload_of_a_grid_is_plain_json():
    import json

    grid = mask_grid(LAYOUT, np.arange(6), 2, 1)
    drawn = json.loads(json.dumps(grid.payload("dark", "q0")))
    assert drawn["selected"] == "q0"
    assert len(drawn["sections"][1]["cells"]) == 4
    assert len(drawn["scale"]["ticks"]) == 5


def a_plane(step: int = 4, **changes) -> Plane:
    tables = {name: np.zeros((3, 4), np.int64) for name in ("rest", "chosen", "new")}
    tables["rest"][0, 1], tables["rest"][1, 2], tables["chosen"][2, 2], tables["new"][1, 0] = 5000, 20, 7, 1
    given = {
        "step": step,
        "tables": tables,
        "off": {"rest": 9, "chosen": 2, "new": 1},
        "unseen": 33,
        "weights": np.array([1e-4, 1e-3, 1e-2, 1e-1, 1]),
        "gradients": np.array([1e-6, 1e-5, 1e-4, 1e-3]),
        "boundary": {"power": 1.0, "exp": 1.0, "eps": 1e-3, "moment": "step"},
        "threshold": 1e-2,
        "examples": 0,
        "squared": False,
    }
    return Plane(**(given | changes))


def test_the_plane_is_the_same_in_both_renderers_with_sizes_by_number():
    plane = a_plane()
    ends, most = ends_of([plane])
    assert ends == ((1e-4, 1e-1), (1e-6, 1e-3))
    assert most == 5000
    chart = plane_chart(plane, ends, most, STYLE, "light")
    table = chart.table()
    rest = table[table.series == "not chosen"]
    assert rest.x.tolist() == pytest.approx([10**-2.5, 10**-1.5])
    assert rest["size"].iloc[0] == 150 > rest["size"].iloc[1]
    traces = {trace.name: trace for trace in plotly_figure(chart).data}
    assert list(traces["not chosen"].marker.size) == pytest.approx(list(np.sqrt(rest["size"])))
    line = table[table.series == "boundary"]
    assert line.y.to_numpy() == pytest.approx(1e-2 * (line.x.to_numpy() + 1e-3))
    layers = vega_spec(chart)["layer"]
    sizes = [layer["encoding"]["size"] for layer in layers if "size" in layer["encoding"]]
    assert sizes == [{"field": "size", "type": "quantitative", "scale": None}]
    assert plotly_figure(chart).layout.xaxis.range == (-4, -1)
    assert "size" not in chart.data().columns
    assert "33 more lie in tensors" in note_of(plane)
    assert "9 weights that are not chosen and 3 that are" in note_of(plane)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "where the last chosen weight lies"),
        ({"boundary": {"power": 0, "exp": 1, "eps": 0, "moment": "start"}}, "when the mask was made"),
        ({"boundary": None}, "No single line"),
        ({"threshold": None}, "nothing was chosen by score"),
        ({"threshold": None, "boundary": {"power": 0, "exp": 1, "eps": 0, "moment": "start"}}, "exactly 0"),
        ({"threshold": None, "boundary": {"power": 1, "exp": 0, "eps": 0, "moment": "start"}}, "the first frame"),
    ],
)
def test_the_plane_says_what_its_line_is_or_why_there_is_none(changes, said):
    plane = a_plane(**changes)
    chart = plane_chart(plane, *ends_of([plane]), STYLE, "dark")
    assert said in chart.alt
    assert any(series.name == "boundary" for series in chart.shown) == ("lies" in said or "made" in said)


def test_a_plane_without_any_point_is_still_a_chart():
    empty = a_plane(tables={name: np.zeros((3, 4), np.int64) for name in ("rest", "chosen", "new")}, threshold=None)
    chart = plane_chart(empty, *ends_of([empty]), STYLE, "light")
    assert chart.table().empty
    assert vega_spec(chart)["layer"]


def test_charts_without_sizes_send_none():
    assert "size" not in loss_chart({"train/loss": curve(0.9)}, 3, STYLE, "light").columns.column_names


def test_turns_are_filled_where_a_layer_trains():
    shares = np.array([[1, 1, 1.0], [0, 0.5, 1], [0, 0, 0]])
    grid = turns_grid(Turns(("embeddings", "layer 0", "layer 1"), np.array([0, 2, 4, 5]), shares))
    assert [cell.value for cell in grid.sections[0].cells] == shares.ravel().tolist()
    assert grid.sections[0].cells[4].hover == "steps 3 to 4: 50% of its weights train"
    assert grid.sections[0].cells[2].hover.startswith("step 5:")
    assert "never trained: layer 1" in grid.alt
    assert "1 or 2 steps" in grid.alt
    assert grid.data()["to step"].tolist() == [2, 4, 5]


def test_a_logarithmic_axis_over_many_powers_of_ten_has_few_ticks():
    wide = Chart("a", "a", "x", "y", (Series("s", [1, 100], [1e-21, 1e-2], "#000000"),), "", log_x=True, log_y=True)
    layout = plotly_figure(wide).layout
    assert layout.xaxis.dtick == "D2"
    assert layout.yaxis.dtick == 2
    nothing = Chart("a", "a", "x", "y", (), "", log_y=True)
    assert plotly_figure(nothing).layout.yaxis.type == "log"


def a_path(**changes) -> Path:
    """Five layers; the corner of layer 3 stands 3 from its line, but goes with that of layer 1."""
    given = {
        "places": np.array([[-2.0, 0], [-1, 1], [1, 2], [2, 0.5], [0.5, -1], [2, -2.0]]),
        "shares": (0.7, 0.2),
        "distance": np.array([np.nan, 0.5, 2.0, 0.25, 3.0, np.nan]),
        "lines": (None, (0, 2), (0, 5), (2, 4), (2, 5), None),
        "tolerance": np.array([np.inf, 0.5, 2.0, 0.25, 2.0, np.inf]),
        "chosen": (1, 3, 4),
        "hidden": 384,
        "normalised": False,
        "examples": 64,
        "tokens": 1613,
    }
    return Path(**(given | changes))


def test_the_path_runs_from_layer_to_layer_in_both_renderers() -> None:
    path = a_path()
    chart = polyline_chart(path, STYLE, "light")
    traces = {trace.name: trace for trace in plotly_figure(chart).data}
    assert list(traces["path through all layers"].x) == path.places[:, 0].tolist()
    assert list(traces["simplified path"].x) == [-2, 1, 0.5, 2]
    assert traces["simplified path"].line.color == traces["layer with adapters"].marker.color == STYLE.colour
    assert traces["layer with adapters"].text == ("1", "3", "4")
    assert traces["layer with adapters"].hovertext[0] == "after layer 1, 2 from the line in to 4"
    assert traces["layer with adapters"].mode == "markers+text"
    assert traces["what goes in"].text == ("in",)
    assert traces["layer without adapters"].text == ("0", "2")
    lines = next(layer for layer in vega_spec(chart)["layer"] if layer["mark"]["type"] == "line")
    assert lines["encoding"]["order"] == {"value": None}, "else Vega-Lite sorts them from left to right"
    words = next(layer for layer in vega_spec(chart)["layer"] if layer["mark"]["type"] == "text")
    assert words["encoding"]["text"] == {"field": "name"}
    assert chart.columns.column("name").to_pylist().count("") == 6 + 4
    assert "Layers 1, 3 and 4 get adapters" in chart.alt
    assert "90.0%" in chart.alt
    assert "Layer 4 gets" in polyline_chart(a_path(chosen=(4,)), STYLE, "dark").alt
    assert "1,613 tokens of 64 training examples" in path_note(path)
    assert "length one" in path_note(a_path(normalised=True))


def test_a_space_has_one_scale_on_both_axes() -> None:
    chart = polyline_chart(a_path(), STYLE, "light")
    layout = plotly_figure(chart).layout
    assert (layout.yaxis.scaleanchor, layout.yaxis.scaleratio) == ("x", 1)
    assert layout.hovermode == "closest"
    layer = vega_spec(chart)["layer"][0]["encoding"]
    for width, height in ((900, 380), (200, 380)):
        spans = {}
        for axis, size in (("x", width), ("y", height)):
            scale = layer[axis]["scale"]
            known = {"width": width, "height": height, "max": max}
            low, high = (eval(scale[f"domain{end}"]["expr"], {}, known) for end in ("Min", "Max"))
            ends = chart.x_range if axis == "x" else chart.y_range
            assert low <= ends[0] + 1e-9
            assert high >= ends[1] - 1e-9
            spans[axis] = (high - low) / size
        assert spans["x"] == pytest.approx(spans["y"])


def test_distances_are_those_the_simplification_saw() -> None:
    path = a_path()
    chart = distance_chart(path, STYLE, "light")
    drawn = {series.name: series for series in chart.shown}
    assert drawn["with adapters"].x.tolist() == [1, 3]
    assert drawn["with adapters"].y.tolist() == [2, 2]
    assert drawn["without adapters"].y.tolist() == [0.5, 0.25]
    assert (drawn["its own distance, if larger"].x.tolist(), drawn["its own distance, if larger"].y.tolist()) == (
        [3],
        [3],
    )
    assert drawn["leaves just these corners"].y.tolist() == [0.5]
    assert "from 0.5 to below 2 leaves just these corners" in chart.alt
    assert "always kept." in chart.alt
    assert plotly_figure(chart).layout.xaxis.dtick == 1
    assert "gets no adapters" in distance_chart(a_path(chosen=(1, 3)), STYLE, "light").alt
    assert "No corner between the ends" in distance_chart(a_path(chosen=(4,)), STYLE, "light").alt
    assert "parted by their order" in distance_chart(a_path(chosen=(1, 4)), STYLE, "light").alt
    table = chart.data()
    assert table.equals(path_table(path))
    assert table["distance from the line"].tolist()[1:5] == [0.5, 2.0, 0.25, 3.0]
    assert table["line to"].tolist()[1] == "after layer 1"
    assert table["adapters"].tolist() == [False, False, True, False, True, True]
    assert table["in the simplified path"].tolist() == [True, False, True, False, True, True]


def test_of_many_layers_only_the_chosen_ones_are_named() -> None:
    many, inner = 20, np.arange(21.0)
    path = a_path(
        places=np.stack([inner, inner % 3], 1), distance=inner, tolerance=np.array([np.inf, *inner[1:-1], np.inf]),
        lines=((0, 20),) * 21, chosen=(17, 18, many - 1),
    )  # fmt: skip
    for chart, expected in (
        (polyline_chart(path, STYLE, "light"), {"in", "17", "18", "19"}),
        (distance_chart(path, STYLE, "light"), {"18.0", "19.0"}),
    ):
        assert {name for series in chart.series for name in series.names} == expected
        assert set(chart.columns.column("name").to_pylist()) == expected | {""}


def test_a_model_of_one_layer_has_a_path_without_corners() -> None:
    path = a_path(
        places=np.array([[-1.0, 0], [1, 0]]), distance=np.full(2, np.nan), tolerance=np.full(2, np.inf),
        lines=(None, None), chosen=(0,), shares=(1.0, 0.0),
    )  # fmt: skip
    assert plotly_figure(polyline_chart(path, STYLE, "light")).data
    assert vega_spec(polyline_chart(path, STYLE, "light"))["layer"]
    assert "No corner" in distance_chart(path, STYLE, "light").alt


def some_trials() -> Trials:
    first = Round(1, (Trial(0, 0.7, 0.1, (-0.02, 0.22)), Trial(1, 0.6, 0.0, None), Trial(2, 0.8, 0.2, (0.1, 0.3))), 0)
    second = Round(2, (Trial(2, 0.65, 0.0, None),), 1)
    return Trials((first, second), 64, 60, 8, 16, 1e-3)


def test_trials_are_drawn_round_by_round_with_the_chosen_marked() -> None:
    chart = trials_chart(some_trials(), STYLE, "light")
    drawn = {series.name: series for series in chart.shown}
    assert list(drawn) == ["round 1", "chosen"], "nothing but the chosen is left of the second round"
    assert drawn["round 1"].x.tolist() == [-0.25, 1.75]
    assert drawn["round 1"].low == pytest.approx([0.58, 0.7])
    assert drawn["round 1"].high == pytest.approx([0.82, 0.9])
    assert drawn["chosen"].x.tolist() == [0.75, 2.25]
    assert drawn["chosen"].y.tolist() == [0.6, 0.65]
    assert (drawn["chosen"].colour, drawn["chosen"].names) == (STYLE.colour, ("round 1", "round 2"))
    assert all(series.marker != STYLE.marker for series in chart.series[:-1])
    bars = next(trace for trace in plotly_figure(chart).data if trace.name == "round 1").error_y
    assert list(bars.array) == pytest.approx([0.12, 0.1])
    tips = [layer["encoding"]["tooltip"] for layer in vega_spec(chart)["layer"] if "tooltip" in layer["encoding"]]
    assert [tip["field"] for tip in tips[0]] == ["series", "label", "y"], "points of one layer stand side by side"
    assert "at" not in plotly_figure(chart).data[0].hovertemplate.split("<extra>")[0]
    assert "in round 1 layer 1 (these examples cannot tell it from 0)" in chart.alt
    assert "in round 2 layer 2 (1 without a finite loss)" in chart.alt
    assert "rose in round 2" in chart.alt
    assert chart.data().equals(trials_table(some_trials()))
    assert chart.data()["chosen"].tolist() == [False, True, False, True]
    assert "8 steps of up to 16 of 60" in trials_note(some_trials())


def test_importance_is_a_raster_with_zero_in_the_middle_of_its_colours() -> None:
    values = np.array([[0, 0, 0], [0.5, -0.5, 0], [1.2, -2.0, 0]])
    found = Importance((1, 2, 5), np.array([0, 10, 20]), values, 10, 1, 3, 2, (7, 16))
    grid = importance_grid(found)
    cells = {(cell.row, cell.column): cell for cell in grid.sections[0].cells}
    assert grid.sections[0].rows == ("layer 1", "layer 2", "layer 5")
    assert (grid.high, grid.marks) == (4, (0, 2, 4))
    assert [grid.tick(mark) for mark in grid.marks] == ["-2", "0", "+2"]
    assert cells[0, 2].value == pytest.approx(3.2)
    assert 0 < cells[1, 2].value < 1e-3, "the lowest has a colour, too"
    assert cells[0, 2].hover == "after step 20: importance +1.2, weight 0.769 in the draw"
    assert "layer 1 is the most important" in grid.alt
    assert "layer 2 the least" in grid.alt
    assert grid.data()["layer 2"].tolist() == [0, -0.5, -2]
    assert "n = 7 to 16" in importance_note(found)
    assert "adapters of one layer," in importance_note(found)
    even = importance_grid(Importance((0, 1), np.array([0]), np.zeros((1, 2)), 10, 2, 3, 2, (16, 16)))
    assert "equally important" in even.alt
    long = Importance((0, 1), np.arange(300), np.zeros((300, 2)), 1, 1, 3, 1, (16, 16))
    assert len(importance_grid(long).sections[0].columns) == 60
    assert len(importance_grid(long).data()) == 300
