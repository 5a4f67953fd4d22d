"""Choices that the page's address holds, so that every view has its link."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st


def choice(name: str, titles: Mapping[str, str], default: str | None, *, key: str, pills: bool = False) -> str | None:
    """One of several, as the parameter `name` of the address says; the address follows the choice.

    Args:
        name: of the parameter.
        titles: what is shown for each value.
        default: used when the address names none, or one that does not exist; None for no choice.
        key: of the widget.
        pills: whether to draw pills, which may be left without a choice.
    """
    named = st.query_params.get(name)
    st.session_state[key] = named if named in titles else default

    def follow() -> None:
        chosen = st.session_state[key]
        if chosen is None or chosen == default:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = chosen

    widget = st.pills if pills else st.segmented_control
    found: str | None = widget(
        name,
        list(titles),
        format_func=lambda value: titles[value],
        key=key,
        on_change=follow,
        required=not pills,
        label_visibility="collapsed",
    )
    return found
