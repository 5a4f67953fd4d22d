"""Type a text, or pick a test example: the base model and finished runs answer side by side."""

import streamlit as st

from pages.parts import asking, feed, shell
from pages.parts.tables import label_of

shell.enter()

st.title("Try it", anchor=False)
finished = {row.id: row for row in feed.listed() if row.state == "finished"}
if not finished:
    st.caption("There is no finished run to answer yet.")
    shell.link("launch", "Launch one", icon=":material/rocket_launch:")
    st.stop()

named = [run_id for run_id in st.query_params.get("runs", "").split(",") if run_id in finished]
chosen = st.multiselect(
    "Runs that answer, beside their base model", list(finished), default=named or list(finished)[:2], key="answering",
    format_func=lambda run_id: label_of(finished[run_id]),
)  # fmt: skip
with shell.told():
    if chosen:
        question = asking.question(finished[chosen[0]])
        if question:
            asking.answers([finished[run_id] for run_id in chosen], question)
