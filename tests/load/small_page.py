"""A page with one timer, for testing the load client itself; `?slow=1` outlasts its own interval."""

import time

import streamlit as st

st.title("Small")
interval = None if st.query_params.get("still") else 0.25


@st.fragment(run_every=interval)
def body() -> None:
    if st.query_params.get("slow"):
        time.sleep(0.6)
    st.session_state.count = st.session_state.get("count", 0) + 1
    st.write(f"tick {st.session_state.count}")
    if st.query_params.get("broken"):
        raise ValueError("broken on purpose")


body()
