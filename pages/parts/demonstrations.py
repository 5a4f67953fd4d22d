"""What a method's card can show with a real model: measured by the engine when asked for."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from engine import settings
from engine.jobs import client
from engine.models.catalogue import NANO_BERT
from pages.parts import shell
from pages.parts.figures.divergence import NAMES, divergence_chart
from pages.parts.picture import draw_chart, theme

WAIT_SECONDS = 600.0


def divergence() -> None:
    """From KL to Fisher, on the small model."""
    st.subheader("From KL to Fisher", anchor=False)
    st.caption(
        "Move some weights a little, in random directions: how far do the model's answers move? For small steps half "
        "of the displacement's square, weighed with the Fisher information, predicts it. Weights with the largest "
        "information move the answers most, those with the smallest hardly at all. Computed in double precision: "
        "single precision drowns the smallest steps in its rounding."
    )
    if st.button("Measure it on nano-bert", icon=":material/ssid_chart:", key="divergence-measure"):
        with shell.told(), st.spinner("The engine measures …"):
            payload = {"model": NANO_BERT, "dataset": "rotten_tomatoes"}
            asked = client.ask(settings.home(), "divergence", payload)
            st.session_state["divergence"] = client.answer(settings.home(), asked, WAIT_SECONDS).value()
    found: dict[str, Any] | None = st.session_state.get("divergence")
    if found:
        draw_chart(divergence_chart(found, theme()), live=False, key="divergence")
        small = st.column_config.NumberColumn(format="%.2e")
        numbers = ("Step", "KL, mean (nats)", "Predicted", "By the diagonal alone")
        st.dataframe(
            _table(found), hide_index=True, alt="Divergence by group of weights and step",
            column_config=dict.fromkeys(numbers, small),
        )  # fmt: skip
        st.code(f"python -m engine divergence --model {found['model']} --dataset {found['dataset']}", language="bash")


def _table(found: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Weights": NAMES[row["group"]],
                "Step": row["step"],
                "KL, mean (nats)": sum(row["kl"]) / len(row["kl"]),
                "Predicted": sum(row["quadratic"]) / len(row["quadratic"]),
                "By the diagonal alone": row["diagonal"],
            }
            for row in found["rows"]
        ]
    )


SECTIONS = {"divergence": divergence}
"""By the names that methods give in `demonstrations`."""
