"""A card for every method, made from what the method itself declares."""

import streamlit as st

from engine.methods.registry import methods
from pages.parts import shell
from pages.parts.choose import FAMILIES
from pages.parts.method_card import card, overview

shell.enter()

st.title("Methods", anchor=False)
known = methods()
names = sorted(known, key=lambda name: (list(FAMILIES).index(known[name].family), known[name].paper.year))
shown = st.pills(
    "Method", names, format_func=lambda name: known[name].title, key="method", bind="query-params",
    label_visibility="collapsed",
)  # fmt: skip
if shown:
    card(known[shown])
else:
    st.caption("Choose a method to read about it.")
    overview([known[name] for name in names])
