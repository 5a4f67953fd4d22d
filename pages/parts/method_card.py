"""One method in words, formula and settings, as it declares itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from engine.methods.contract import Method
from engine.models.catalogue import MINILM
from pages.parts import shell
from pages.parts.choose import FAMILIES, summary_of
from pages.parts.demonstrations import SECTIONS
from pages.parts.forms import fields_of


def overview(known: Sequence[type[Method]], choose: Callable[[str], None]) -> None:
    """All methods, family by family, one small card each."""
    for family in dict.fromkeys(method.family for method in known):
        st.markdown(f"**{FAMILIES[family]}**")
        with st.grid("auto", min_column_width=300):
            for method in known:
                if method.family == family:
                    _small_card(method, choose)


def _small_card(method: type[Method], choose: Callable[[str], None]) -> None:
    with st.container(border=True, height="stretch", gap="xsmall"):
        st.markdown(f"##### {method.title}")
        st.caption(f"{method.paper.venue}")
        st.markdown(summary_of(method))
        st.space("stretch")
        st.button("Read", key=f"read-{method.name}", on_click=choose, args=[method.name], type="tertiary")


def card(method: type[Method]) -> None:
    """The method's card."""
    st.header(method.title, anchor=False)
    st.caption(FAMILIES[method.family])
    st.latex(method.formula)
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown(_lowered(inspect.cleandoc(method.__doc__ or "")))
        if method.notes:
            with st.expander("Where sources differ, and how parameters are counted"):
                st.markdown(method.notes)
    with right, st.container(border=True):
        for symbol, meaning in method.symbols.items():
            st.markdown(f"${symbol}$ — {meaning}")
        paper = method.paper
        st.markdown(f"[{paper.title}]({paper.url})")
        st.caption(f"{paper.authors.removesuffix('.')}. {paper.venue}.")
        for model, rate in {MINILM: method.lr, **method.lr.own}.items():
            st.metric(f"Default learning rate on {model}", f"{rate.value:g}", help=f"The {rate.tuned}.")
        st.caption("Exports: " + ", ".join(method.export_formats))
        shell.link("launch", "Launch a run with it", icon=":material/rocket_launch:", method=method.name)
    _settings(method)
    for name in method.demonstrations:
        SECTIONS[name]()


def _settings(method: type[Method]) -> None:
    fields = fields_of(method.Config)
    if not fields:
        return
    st.subheader("Settings", anchor=False)
    rows = [
        {
            "Setting": name,
            "Title": field.get("title", name),
            "Default": _default(field.get("default")),
            "Allowed": _bounds(field),
            "What it does": field.get("description", ""),
            "Source of the default": field.get("source", ""),
        }
        for name, field in fields.items()
    ]
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, alt=f"Settings of {method.title}",
        height="content",
        row_height=88,
        column_config={
            "What it does": st.column_config.TextColumn(width=420),
            "Source of the default": st.column_config.TextColumn(width=200),
        },
    )  # fmt: skip


def _default(value: object) -> str:
    if value is None:
        return "automatic"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _bounds(field: dict[str, object]) -> str:
    items = field.get("items")
    choices = field.get("enum") or (items.get("enum") if isinstance(items, dict) else None)
    if isinstance(choices, list):
        return ", ".join(map(str, choices))
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    ends = [
        f"from {low:g}" if isinstance(low, int | float) else "",
        f"to {high:g}" if isinstance(high, int | float) else "",
    ]
    return " ".join(end for end in ends if end)


def _lowered(text: str) -> str:
    """The text with its headings two levels smaller than the card's own."""
    return text.replace("\n### ", "\n##### ")
