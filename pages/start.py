"""The first page: what this is, one button that runs the first example, and a recorded run to look at."""

import streamlit as st

from engine import settings
from engine.jobs import client
from pages.parts import feed, first, shell, words
from pages.parts.panel import watch
from pages.parts.recorded import RecordedRun, recordings
from pages.parts.tables import BRIEF, dataset_title, method_title, runs_table
from pages.parts.views import Subject, overview

shell.enter()

left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
with left:
    st.title("See how fine-tuning works, inside a real model", anchor=False)
    st.markdown(
        "Pick a model, a method and a budget of parameters, and watch which weights, ranks and directions change "
        "while it learns from real text. Then compare methods fairly: same data, same budget, several seeds, and "
        "a sentence that says what can be concluded."
    )
with right, st.container(border=True):
    st.markdown("**The first example**")
    st.caption(first.describe())
    with shell.told():
        if st.button("Run the first example", type="primary", icon=":material/play_arrow:", width="stretch"):
            with st.spinner("Planning …"):
                run_id = first.launch(shell.asker())
            shell.go("run", run=run_id)
    shell.link("launch", "or choose everything yourself", icon=":material/tune:")

if found := recordings():
    record = RecordedRun(found[0])
    run = record.run
    st.subheader("A recorded run", anchor=False)
    st.caption(
        f"{method_title(run['method'])} on {dataset_title(run['dataset'])} with {run['model']}: a real run, "
        f"recorded as {run['id']}, played back without computing anything."
    )
    subject = Subject("recorded", run["method"], record.plan, over=True)
    watch(
        record, lambda moment: overview(moment, subject), total=run["steps"], state_now=lambda: "finished",
        start="Playing", linked=False,
    )  # fmt: skip
    with st.expander("Where the recording comes from"):
        st.json(record.snapshot().metas.get("provenance", {}))

left, right = st.columns([3, 1], gap="large")
with left:
    st.subheader("Recent runs", anchor=False)
    rows = feed.listed()[:6]
    if not rows:
        st.caption("None yet: begin with the first example.")
    elif chosen := runs_table(rows, key="recent-runs", columns=BRIEF):
        shell.go("run", run=chosen[0])
with right:
    st.subheader("Engine", anchor=False)
    state = client.engine_state(settings.home())
    if state:
        st.badge("running", color="green", icon=":material/check_circle:")
        st.caption(f"{words.number(len(state.slots), 'place')} for runs, since {words.ago(state.started)}")
    else:
        st.badge("asleep", color="gray", icon=":material/bedtime:")
        st.caption("It starts by itself with the next run.")
    shell.link("engine", "Queue and disk", icon=":material/memory:")
