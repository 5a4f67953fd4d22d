"""The engine: whether it runs, its places, the queue, and what the runs take on disk."""

import streamlit as st

from pages.parts import engine_room, feed, shell

shell.enter()

with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
    st.title("Engine", anchor=False, width="content")
    st.button("Refresh", icon=":material/refresh:")
with shell.told():
    engine_room.state()
    rows = feed.listed()
    engine_room.queue([row for row in rows if not row.is_over])
    engine_room.disk([row for row in rows if row.is_over])
