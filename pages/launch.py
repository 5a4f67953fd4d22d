"""Make a run: model, data, method, budget; see the plan; launch."""

from contextlib import suppress

import streamlit as st

from engine.errors import EngineError
from engine.spec import parse_spec
from pages.parts import choose, feed, shell
from pages.parts.data_look import look
from pages.parts.plan_card import MOST_SEEDS, keep_plan_in_view, plan_card

shell.enter()

st.title("Launch", anchor=False)
like = st.query_params.get("like", "")
given = None
with shell.told():
    given = parse_spec(feed.row(like).spec) if like else None
key = f"launch-{like}"

left, right = st.columns([3, 2], gap="large")
model, dataset, spec, problem = "", {}, None, None
with left:
    with st.container(border=True):
        st.subheader("Model and data", anchor=False)
        model = choose.choose_model(given, key)
        with shell.told():
            dataset = choose.choose_dataset(given, key)
    with st.container(border=True):
        st.subheader("Budget", anchor=False)
        budget = choose.choose_budget(given, key, model)
        beside_budget = st.container()
    with st.container(border=True):
        st.subheader("Method", anchor=False)
        method = choose.choose_method(given, key, budgeted=budget is not None)
    with st.container(border=True):
        st.subheader("Training", anchor=False)
        train = choose.choose_training(given, key)
        seeds = st.number_input(
            "Runs, each with its own seed", 1, MOST_SEEDS, 1, key=f"{key}-seeds", persist_state="session",
            help="One seed proves nothing: three or more show how much chance there is in a result.",
        )  # fmt: skip
    if model and dataset:
        data = {"model": model, "dataset": dataset, "method": method, "budget": budget, "train": train}
        try:
            spec = parse_spec({name: value for name, value in data.items() if value is not None})
        except EngineError as error:
            problem = error

keep_plan_in_view()
with right, st.container(border=True, key="plan"):
    st.subheader("The plan", anchor=False)
    planned = plan_card(spec, problem, seeds, beside_budget)

if spec is not None:
    # What stands in the way of the plan was told there already.
    with shell.told() if planned else suppress(EngineError):
        look(spec)
    with st.expander("This spec, as YAML"):
        st.code(spec.to_yaml(), language="yaml")
