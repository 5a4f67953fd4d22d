"""A card for every method, made from what the method itself declares."""

import streamlit as st

from engine.methods.registry import methods
from pages.parts import linked, shell
from pages.parts.choose import FAMILIES
from pages.parts.method_card import card, overview

shell.enter()

st.title("Methods", anchor=False)
known = methods()
names = sorted(known, key=lambda name: (list(FAMILIES).index(known[name].family), known[name].paper.year))
shown = linked.choice("method", {name: known[name].title for name in names}, None, key="shown-method", pills=True)
if shown:
    card(known[shown])
else:

    def choose(name: str) -> None:
        st.query_params["method"] = name

    overview([known[name] for name in names], choose)
