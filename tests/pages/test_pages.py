"""Each page over a small real store: what it shows, what its buttons do, and that text stays text."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from engine.errors import UnknownName
from engine.methods.registry import methods
from engine.store.run_file import RunWriter
from engine.training.build import Caches
from engine.training.run import run_job
from tests.pages.conftest import NASTY, STEPS


def no_error(app):
    assert not app.exception, app.exception
    return app


def numbers(packed) -> list[float]:
    """An array as Plotly sends it to the browser."""
    return np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"]).tolist()


def kinds(app) -> set[str]:
    return {element.type for element in app.main}


@pytest.mark.parametrize(
    "page", ["start", "launch", "run", "compare", "methods", "try_it", "in_context", "data", "engine"]
)
def test_every_page_opens_on_an_empty_store(house, page):
    no_error(house.open(page))


def test_start_offers_the_first_example_and_lists_runs(house, words_of):
    house.finish(house.add())
    app = no_error(house.open("start"))
    assert "Run the first example" in [button.label for button in app.button]
    assert app.dataframe[0].value["Run"].tolist() == [row.id for row in house.runs.list()]
    assert "asleep" in words_of(app)


@pytest.mark.parametrize("method", ["id3", "adalora"])
def test_every_view_of_a_finished_run_is_drawn(house, method):
    run_id = house.add(method)
    house.finish(run_id)
    for view in ("overview", "curves", "masks", "ranks", "change", "biases", "cost", "result", "recipe"):
        app = no_error(house.open("run", run=run_id, view=view))
        if view != "recipe":
            assert app.get("plotly_chart") or app.get("bidi_component"), view
        assert not app.get("vega_lite_chart"), "a finished run is shown with Plotly"


def test_finished_run_shows_accuracy_with_its_interval(house, words_of):
    run_id = house.add()
    house.finish(run_id)
    text = words_of(house.open("run", run=run_id))
    summary = house.runs.get(run_id).summary
    assert f"Test accuracy: {100 * summary['accuracy']['test']:.1f} %" in text
    assert "Trained: 5,000" in text


def test_texts_of_the_data_are_never_read_as_markup(house, words_of):
    run_id = house.add()
    house.finish(run_id)
    app = no_error(house.open("run", run=run_id, view="result"))
    frames = [frame.value for frame in app.dataframe]
    assert sum(NASTY in frame.to_string() for frame in frames if "Text" in frame) == 2
    for element in [*app.markdown, *app.caption]:
        assert "script" not in element.value
    preview = no_error(house.open("launch", like=run_id))
    assert all("script" not in element.value for element in [*preview.markdown, *preview.caption])


def test_notes_and_reasons_are_shown_as_text(house, words_of):
    from engine.store.run_file import RunWriter

    run_id = house.add()
    house.begin(run_id)
    with RunWriter(house.runs.folder(run_id).database) as sink:
        sink.note("warning", f"Unknown label {NASTY}")
    house.runs.finish(run_id, "failed", error=f"Cannot use {NASTY}", todo="Look at the file.")
    app = no_error(house.open("run", run=run_id))
    assert f"Cannot use {NASTY}" in [element.value for element in app.text]
    assert "\\<script\\>" in app.warning[0].value
    assert "Resume" in [button.label for button in app.button]


def test_active_run_is_shown_live_with_phase_and_speed(house, words_of):
    run_id = house.add()
    house.begin(run_id)
    house.record(run_id, 8)
    app = no_error(house.open("run", run=run_id, view="curves"))
    assert app.get("vega_lite_chart")
    assert not app.get("plotly_chart")
    assert "**training**" in words_of(app)
    assert "step 8 of 20 · 20.0 steps/s · about 0.6 s left" in str(app.get("progress")[0].proto.text)
    assert app.slider[0].value == 8


def test_first_steps_are_not_yet_extrapolated(house):
    run_id = house.add()
    house.begin(run_id)
    house.record(run_id, 2)
    app = no_error(house.open("run", run=run_id))
    assert "estimating" in app.get("progress")[0].proto.text


def test_moving_the_slider_stands_still_and_goes_into_the_address(house, words_of):
    run_id = house.add()
    house.begin(run_id)
    house.record(run_id, 8)
    app = house.open("run", run=run_id, view="masks")
    app.slider[0].set_value(5).run()
    no_error(app)
    assert app.query_params["t"] == "5"
    assert "after step 5" in words_of(app)
    later = no_error(house.open("run", run=run_id, view="masks", t="3"))
    assert later.slider[0].value == 3
    assert later.get("plotly_chart"), "paused views are drawn to be explored"


def test_a_picked_tensor_shows_its_exact_mask_at_the_step(house, words_of):
    run_id = house.add()
    house.finish(run_id)
    layout = (
        __import__("engine.store.run_file", fromlist=["RunReader"])
        .RunReader(house.runs.folder(run_id).database)
        .meta("layout")
    )
    app = no_error(house.open("run", run=run_id, view="masks", tensor=layout[5]["name"], t="7"))
    assert "21 entries selected" in words_of(app)


def test_a_run_over_in_a_blink_is_played_back(house, words_of):
    run_id = house.add()
    house.finish(run_id, training_seconds=3.0)
    app = no_error(house.open("run", run=run_id))
    assert "Replay of recorded frames" in words_of(app)
    assert app.slider[0].value < STEPS


def test_an_echo_of_an_earlier_tick_is_not_a_hand_on_the_slider(house, words_of):
    run_id = house.add()
    house.finish(run_id, training_seconds=3.0)
    app = house.open("run", run=run_id)
    first = app.slider[0].value
    app.run()
    assert app.slider[0].value > first
    app.slider[0].set_value(first).run()
    assert "Replay of recorded frames" in words_of(app)
    assert app.slider[0].value > first
    app.slider[0].set_value(STEPS - 1).run()
    assert "Replay of recorded frames" not in words_of(app)
    assert app.slider[0].value == STEPS - 1


def test_stop_asks_how_and_only_the_owner_may(house):
    mine, foreign = house.add(), house.add(owner="browser-x", seed=1)
    app = house.open("run", run=mine)
    next(button for button in app.button if button.label == "Stop").click().run()
    labels = [button.label for button in app.button]
    assert {"Stop and keep the checkpoint", "Stop and discard the checkpoint", "Keep training"} <= set(labels)
    # This browser is the machine's own user, who may stop anything.
    other = house.open("run", run=foreign)
    assert not next(button for button in other.button if button.label == "Stop").disabled


@pytest.mark.parametrize("disguise", ["elsewhere", "through a proxy"])
def test_other_browsers_may_stop_their_own_runs_only(house, connection, disguise):
    from pages.parts import shell

    connection.cookies[shell.COOKIE] = "random"
    if disguise == "elsewhere":
        connection.remote_ip = "192.168.1.7"
    else:
        connection.headers.append(("X-Forwarded-For", "192.168.1.7"))
    mine = house.add(owner=shell.owner_of("random"))
    foreign = house.add(seed=1)
    stops = {
        run_id: next(button for button in house.open("run", run=run_id).button if button.label == "Stop").disabled
        for run_id in (mine, foreign)
    }
    assert stops == {mine: False, foreign: True}


def test_unknown_run_says_so_and_leads_back(house, words_of):
    app = no_error(house.open("run", run="20260101-000000-id3-abcd"))
    with pytest.raises(UnknownName) as error:
        house.runs.get("20260101-000000-id3-abcd")
    assert error.value.what in words_of(app)
    no_error(house.open("run", run="../../etc/passwd"))


def test_numbers_of_a_run_say_what_they_were_measured_on(house, words_of):
    run_id = house.add()
    house.finish(run_id)
    with RunWriter(house.runs.folder(run_id).database) as sink:
        sink.meta("curve", {"items": 256, "of": 816})
    app = no_error(house.open("run", run=run_id, t=str(STEPS)))
    metrics = {metric.label: metric for metric in app.metric}
    assert metrics["Validation accuracy"].delta == "at the end, all 816"
    assert "fixed part of it, 256 of 816 examples" in metrics["Validation accuracy"].help
    assert "on the same 256 of 816 validation examples throughout" in words_of(app)
    time = metrics["Time, with loading"]
    assert (time.value, time.delta) == ("80 s", "0.3 steps/s in training")
    assert "The training steps alone took 60 s" in time.help
    assert "The other 20 s went into loading" in time.help


def test_a_run_from_before_the_curve_was_described_opens(house, words_of):
    run_id = house.add()
    house.finish(run_id)
    app = no_error(house.open("run", run=run_id, t=str(STEPS)))
    assert {metric.label: metric for metric in app.metric}["Validation accuracy"].delta == "at the end, on all"


def test_plan_is_shown_before_launch(house, words_of):
    run_id = house.add()
    text = words_of(no_error(house.open("launch", like=run_id)))
    assert "The method trains: 5,000" in text
    assert "Task head, apart: 258" in text
    assert "Memory: ~" in text
    assert "test items" in text


def test_a_budget_out_of_reach_is_refused_with_a_reason(house, words_of):
    run_id = house.add()
    app = house.open("launch", like=run_id)
    app.number_input(key=f"launch-{run_id}-params").set_value(0).run()
    no_error(app)
    assert words_of(app).count("trains nothing") == 2, "in the plan's place and below the budget's field"
    (button,) = [button for button in app.button if button.label == "Launch"]
    assert button.disabled
    assert "trains nothing" in button.help
    app.number_input(key=f"launch-{run_id}-params").set_value(600).run()
    assert "trains nothing" not in words_of(no_error(app))
    (button,) = [button for button in app.button if button.label == "Launch"]
    assert not button.disabled


def test_without_data_the_button_says_what_is_missing(house):
    app = house.open("launch")
    app.selectbox(key="launch--dataset").set_value("A file on this machine").run()
    (button,) = [button for button in no_error(app).button if button.label == "Launch"]
    assert button.disabled
    assert "Choose a model and data first" in button.help


def test_an_identical_finished_run_is_offered(house, words_of):
    run_id = house.add()
    house.finish(run_id)
    app = no_error(house.open("launch", like=run_id))
    assert "This exact run is there already" in words_of(app)
    assert next(button for button in app.button if button.label == "Nothing new to launch").disabled


def test_a_file_outside_the_roots_is_refused_and_nothing_is_lost(house, words_of):
    run_id = house.add()
    app = house.open("launch", like=run_id)
    app.text_input(key=f"launch-{run_id}-path").set_value("/etc/hostname.csv").run()
    no_error(app)
    assert "outside the folders" in words_of(app)
    assert app.number_input(key=f"launch-{run_id}-params").value == 5000


def upload(app, name: str, data: bytes):
    app.selectbox(key="launch--dataset").set_value("Upload a file").run()
    return app.file_uploader[0].upload(name, data, "text/csv").run()


def test_an_uploaded_file_is_shown_with_its_columns_and_labels(house, words_of):
    rows = "".join(f'"a film number {i}, {NASTY}",{"good" if i % 2 else "bad"}\n' for i in range(80))
    app = no_error(upload(house.open("launch"), "mine.csv", f"<b>text</b>,verdict\n{rows}".encode()))
    assert "80 rows" in words_of(app)
    assert "<b>text</b>" in [box.value for box in app.selectbox]
    assert any({"bad", "good"} <= set(frame.value.get("Label", [])) for frame in app.dataframe)
    assert all("script" not in element.value for element in [*app.markdown, *app.caption])


ONE_CLASS = b"text,label\n" + b"".join(b"film %d,good\n" % i for i in range(60))


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "empty"), (b"only one line of words", "no rows"), (ONE_CLASS, "class")]
)
def test_a_file_that_cannot_be_learned_from_is_refused_with_a_reason(house, words_of, data, said):
    app = no_error(upload(house.open("launch"), "mine.csv", data))
    assert "This did not work" in words_of(app)
    assert said in words_of(app)
    assert all(button.disabled for button in app.button if button.label == "Launch")


def test_a_hub_that_cannot_be_reached_leaves_the_rest_usable(house, words_of, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    app = house.open("launch")
    app.selectbox(key="launch--model").set_value("A model from the hub").run()
    app.text_input(key="launch--hub").set_value("nobody/nothing").run()
    no_error(app)
    assert words_of(app).count("This did not work") == 1
    app.selectbox(key="launch--model").set_value("minilm-l6").run()
    assert "The method trains" in words_of(no_error(app))


def test_compare_puts_seeds_together_and_says_what_can_be_concluded(house, words_of):
    for seed in (0, 1):
        house.finish(house.add("id3", seed))
        house.finish(house.add("lora", seed))
    app = no_error(house.open("compare"))
    table = app.dataframe[0].value
    assert table["Seeds"].tolist() == [2, 2]
    assert all("over 2 seeds" in text for text in table["Interval"])
    assert "What can be concluded" in words_of(app)
    assert "told apart" in words_of(app)


def test_sizes_are_those_that_the_result_counted(house, words_of):
    """A method that moved other weights than planned has one number in the label, the table and the picture."""
    run_id = house.add("gmt")
    house.finish(run_id, params={"requested": None, "method": 777, "head": 5, "total": 782})
    app = no_error(house.open("compare"))
    table = app.dataframe[0].value
    assert (table["Trained"][0], table["Head"][0]) == (777, 5)
    assert table["Method"][0].endswith(" 777")
    assert " 777 " in app.multiselect[0].options[0]
    shown = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    (pareto,) = [chart for chart in shown if "as counted at the end" in chart["layout"]["xaxis"]["title"]["text"]]
    assert numbers(pareto["data"][0]["x"]) == [777]
    assert no_error(house.open("run")).dataframe[0].value["Trains"].tolist() == [777]


def test_settings_tell_groups_of_one_method_and_size_apart(house):
    for rate in (0.001, 0.002):
        house.finish(house.add("lora", train={"steps": STEPS, "batch_size": 4, "lr": rate}))
    names = no_error(house.open("compare")).dataframe[0].value["Method"].tolist()
    assert [name.split(", ")[-1] for name in names] == ["lr 0.001", "lr 0.002"]


def test_runs_of_different_models_are_told_apart_and_warned_of(house, words_of):
    house.finish(house.add("lora"))
    house.finish(house.add("lora", model="minilm-l6"))
    app = no_error(house.open("compare"))
    assert "started from different models" in app.warning[0].value
    assert {name.split(", ")[-1] for name in app.dataframe[0].value["Method"]} == {"minilm-l6", "nano-bert"}


def test_masks_are_compared_with_what_chance_would_give(house, words_of):
    for seed in (0, 1):
        house.finish(house.add("id3", seed))
    app = no_error(house.open("compare"))
    assert "Did they choose the same weights?" in words_of(app)
    (table,) = [frame.value for frame in app.dataframe if "By lot" in frame.value]
    assert table["Jaccard"].tolist() == [1.0], "the house records the same entries for both"
    assert table["Common"][0] > 10 * table["By lot"][0]
    assert "times as many as by lot" in words_of(app)


def test_one_run_is_measured_at_many_budgets(house, words_of, monkeypatch):
    from pages.parts import masks

    rows = [
        {"step": n, "params": 10 * n, "correct": 5 + n, "total": 10, "accuracy": (5 + n) / 10, "ci95": [0.1, 0.9]}
        for n in (1, 2)
    ]
    answer = {"run": "r", "method": "id3", "head": 66, "rows": rows}
    monkeypatch.setattr(masks.client, "ask", lambda *asked: asked)
    monkeypatch.setattr(masks.client, "answer", lambda *asked: type("Given", (), {"value": lambda self: answer})())
    run_id = house.add("id3")
    house.finish(run_id)
    app = no_error(house.open("run", run=run_id, view="result"))
    app.button(key=f"budgets-{run_id}").click().run()
    no_error(app)
    (table,) = [frame.value for frame in app.dataframe if "Weights" in frame.value]
    assert table["Weights"].tolist() == [10, 20]
    assert "go back to what they were" in words_of(app)


def test_weights_are_shown_by_the_step_they_were_selected_at(house, words_of, monkeypatch):
    from pages.parts import masks

    rows = [
        {"first": 10 * n, "last": 10 * n + 9, "count": 5, "quartiles": [1e-5, 2e-5 / (n + 1), 3e-5], "unmoved": n}
        for n in (0, 1)
    ]
    monkeypatch.setattr(masks.client, "ask", lambda *asked: asked)
    answer = {"run": "r", "method": "id3", "rows": rows}
    monkeypatch.setattr(masks.client, "answer", lambda *asked: type("Given", (), {"value": lambda self: answer})())
    run_id = house.add("id3")
    house.finish(run_id)
    app = no_error(house.open("run", run=run_id, view="result"))
    app.button(key=f"ages-{run_id}").click().run()
    (table,) = [frame.value for frame in no_error(app).dataframe if "Median change" in frame.value]
    assert table["First step"].tolist() == [1, 11]
    assert table["Unmoved"].tolist() == [0, 1]


def test_fishs_card_shows_how_far_answers_move_when_weights_do(house, words_of, monkeypatch):
    from pages.parts import demonstrations

    rows = [
        {"group": group, "step": step, "kl": [size * step**2, 2 * size * step**2], "quadratic": [size * step**2] * 2,
         "diagonal": size * step**2}
        for group, size in (("top", 1.0), ("random", 1e-3), ("bottom", 0.0))
        for step in (1e-3, 1e-2)
    ]  # fmt: skip
    answer = {"model": "nano-bert", "dataset": "rotten_tomatoes", "k": 9, "examples": 4, "rows": rows}
    given = type("Given", (), {"value": lambda self: answer})
    monkeypatch.setattr(demonstrations.client, "ask", lambda *asked: asked)
    monkeypatch.setattr(demonstrations.client, "answer", lambda *asked: given())
    app = no_error(house.open("methods", method="fish"))
    app.button(key="divergence-measure").click().run()
    (table,) = [frame.value for frame in no_error(app).dataframe if "Predicted" in frame.value]
    assert table["KL, mean (nats)"].tolist()[:2] == pytest.approx([1.5e-6, 1.5e-4])
    assert "python -m engine divergence" in [code.value for code in app.code][-1]
    assert not [button for button in house.open("methods", method="pafi").button if button.key == "divergence-measure"]


def test_the_budget_offered_is_as_far_as_bitfit_goes_on_the_model(house):
    app = no_error(house.open("launch"))
    assert app.number_input(key="launch--params-nano-bert").value == 5_888
    app.selectbox(key="launch--model").set_value("minilm-l6").run()
    assert app.number_input(key="launch--params-minilm-l6").value == 26_112


def test_in_context_learning_is_measured_and_shown_word_by_word(house, words_of, monkeypatch):
    """The model is real; only the engine's process is left out."""
    from engine.prompting.measure import by_shots, load_speaker
    from pages.parts import prompting

    monkeypatch.setattr(prompting, "measure", lambda model, task: by_shots(load_speaker(model), task, [0, 4], 20))
    app = house.open("in_context", task="reversal")
    app.button(key="in-context-measure").click().run()
    no_error(app)
    assert app.get("plotly_chart")
    assert app.dataframe[0].value["Shots"].tolist() == [0, 4]
    assert app.code[0].value.count("\n") == 4
    assert "without changing a weight" in words_of(app)


def test_an_encoder_cannot_be_asked_in_context(house, words_of, monkeypatch):
    from engine.prompting.measure import by_shots, load_speaker
    from pages.parts import prompting

    monkeypatch.setattr(prompting, "measure", lambda model, task: by_shots(load_speaker(model), task, [0]))
    app = house.open("in_context")
    app.text_input(key="in-context-model").set_value("minilm-l6").run()
    app.button(key="in-context-measure").click().run()
    assert "is an encoder" in words_of(no_error(app))


def test_methods_have_a_card_each(house, words_of):
    for name, method in methods().items():
        text = words_of(no_error(house.open("methods", method=name)))
        assert method.paper.title in text
        assert method.formula in text


def test_data_shows_the_first_batch_with_padding(house):
    app = no_error(house.open("data"))
    tokens = next(frame.value for frame in app.dataframe if "[CLS]" in frame.value.to_string())
    assert "[PAD]" in tokens.to_string()
    assert "[SEP]" in tokens.to_string()


def test_engine_page_lists_the_queue(house):
    waiting = house.add()
    app = no_error(house.open("engine"))
    assert waiting in app.dataframe[0].value["Run"].tolist()


@pytest.mark.parametrize(("method", "view"), [("id3", "plane"), ("fish", "plane"), ("lisa", "layers")])
def test_what_a_real_run_recorded_is_drawn_at_every_moment(house, words_of, method, view):
    run_id = house.add(method, budget=None)
    house.runs.claim(run_id, "cpu:0", {"name": "test", "pid": 1, "created": 0.0})
    assert run_job(house.home, run_id, Caches()) == "finished", house.runs.get(run_id).error
    for step in ("0", "1", str(STEPS)):
        app = no_error(house.open("run", run=run_id, view=view, t=step))
        assert app.get("plotly_chart") or app.get("bidi_component") or (method, step) == ("id3", "0")
    told = words_of(app)
    if view == "plane":
        assert f"Decision plane, after step {STEPS}" in told
        assert ("where the last chosen weight lies" in told) == (method == "id3")
    else:
        assert f"Layers that train, over {STEPS} steps" in told


@pytest.mark.parametrize(
    ("method", "view", "title", "note"),
    [
        ("rdp_lora", "path", "Path of the mean hidden state (n = 64 examples", "Measured before the first step"),
        ("subtuning", "trials", "Trials of layers, round by round (n = ", "paired by example"),
        ("ist", "importance", "Importance of each layer over the steps", "Every 10 steps"),
        ("surgical", "scores", "Score of each layer (n = ", "before the first step"),
    ],
)
def test_what_a_method_chose_layers_by_is_drawn_at_every_moment(house, words_of, method, view, title, note):
    run_id = house.add(method, budget=None)
    house.runs.claim(run_id, "cpu:0", {"name": "test", "pid": 1, "created": 0.0})
    assert run_job(house.home, run_id, Caches()) == "finished", house.runs.get(run_id).error
    for step in ("0", "1", str(STEPS)):
        app = no_error(house.open("run", run=run_id, view=view, t=step))
        assert app.get("plotly_chart") or app.get("bidi_component")
        assert title in words_of(app)
        assert note in words_of(app)


def test_what_is_measured_in_mid_run_is_shown_from_then_on(house, words_of):
    run_id = house.add("tuned_heads", budget=None)
    waiting = house.add("tuned_heads", budget=None, seed=1)
    house.runs.claim(run_id, "cpu:0", {"name": "test", "pid": 1, "created": 0.0})
    assert run_job(house.home, run_id, Caches()) == "finished", house.runs.get(run_id).error
    early = no_error(house.open("run", run=run_id, view="scores", t="3"))
    assert "Measured after step 4: at this moment nothing is known" in words_of(early)
    assert not early.get("plotly_chart")
    late = no_error(house.open("run", run=run_id, view="scores", t="4"))
    assert "Score of each head (n = 64 examples" in words_of(late)
    assert "the 4 of 16 heads with the highest scores" in words_of(late)
    assert "as soon as" in words_of(no_error(house.open("run", run=waiting, view="scores")))


@pytest.mark.parametrize(
    ("method", "view"),
    [("rdp_lora", "path"), ("subtuning", "trials"), ("ist", "importance"), ("tuned_heads", "scores")],
)
def test_a_run_from_before_findings_were_recorded_opens_and_says_what_is_missing(house, words_of, method, view):
    old, waiting = house.add(method, budget=None), house.add(method, budget=None, seed=1)
    house.finish(old)
    assert "has no record of what its method measured" in words_of(no_error(house.open("run", run=old, view=view)))
    assert "has no record" not in words_of(no_error(house.open("run", run=waiting, view=view)))
    no_error(house.open("run", run=old, view="overview"))


def test_a_run_whose_gradients_nobody_could_see_says_so(house):
    run_id = house.add("fish", budget=None)
    house.finish(run_id)
    with RunWriter(house.runs.folder(run_id).database) as sink:
        sink.meta("plane", {"sees": False, "boundary": None, "threshold": None, "weights": [1], "gradients": [1]})
    app = no_error(house.open("run", run=run_id, view="plane"))
    assert "CUDA graphs" in app.info[0].value
