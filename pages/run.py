"""One run: its phase and progress, the views inside the model, and what came of it."""

import functools

import streamlit as st

from engine.errors import EngineError
from pages.parts import feed, linked, masks, run_head, shell, taking
from pages.parts.panel import watch
from pages.parts.results import recipe, summary_metrics, test_results
from pages.parts.tables import runs_table
from pages.parts.views import DRAWN, Subject, views_of

shell.enter()

run_id = st.query_params.get("run", "")
if not run_id:
    st.title("Runs", anchor=False)
    rows = feed.listed()
    if not rows:
        st.caption("There is no run yet.")
        shell.link("launch", "Launch one", icon=":material/rocket_launch:")
        st.stop()
    st.caption("Choose a run to open it.")
    if chosen := runs_table(rows, key="all-runs"):
        shell.go("run", run=chosen[0])
    st.stop()

try:
    row = feed.row(run_id)
except EngineError as error:
    shell.show_error(error)
    shell.link("run", "All runs", icon=":material/list:")
    st.stop()

record = feed.StoredRun(row.id)
snapshot = record.snapshot()
run_head.head(row, snapshot)
if row.summary:
    summary_metrics(row.summary, snapshot.metas.get("curve"))

titles = views_of(row.method, set(snapshot.frames))
if row.state == "finished":
    titles |= {"result": "Test result"}
titles |= {"recipe": "Spec and downloads"}
view = linked.choice("view", titles, "overview", key=f"view-{row.id}")

if view == "result":
    test_results(snapshot.metas["test"], key=row.id)
    if masks.grew(row, record):
        with shell.told():
            masks.grown_section(row)
elif view == "recipe":
    recipe(row)
    taking.downloads(row)
    taking.provenance(snapshot)
else:
    picked = run_head.Picked(row.id)

    def body(moment):
        DRAWN[view](moment, Subject(row.id, row.method, row.plan, row.is_over, picked.name(), picked.pick))

    watch(
        record,
        body,
        total=row.steps,
        state_now=lambda: feed.row(run_id).state,
        start=run_head.starts(row),
        head=None if row.is_over else functools.partial(run_head.standing, run_id),
    )
