"""Datasets: what there is, and any one of them as a model will see it."""

import streamlit as st

from engine.spec import parse_spec
from pages.parts import choose, shell
from pages.parts.data_look import look

shell.enter()

st.title("Data", anchor=False)
st.caption(
    "Each dataset is split 80/10/10 by a hash of its text, before any training: the same text always lands in the "
    "same part, and copies across parts are removed and counted. Validation is for curves and tuning; test is "
    "measured once, at the end."
)
left, right = st.columns(2, gap="large")
spec = None
with shell.told():
    with left:
        dataset = choose.choose_dataset(None, "data")
    with right:
        model = choose.choose_model(None, "data")
        st.caption("The model decides how text becomes tokens.")
    if dataset and model:
        spec = parse_spec({"model": model, "dataset": dataset, "method": "full"})
        look(spec)
