"""Finished runs side by side: curves, one table, accuracy against size, and what can be concluded."""

import streamlit as st

from pages.parts import compared, feed, linked, masks, shell
from pages.parts.figures.comparison import overlay_chart, pareto_chart
from pages.parts.picture import draw_chart, theme
from pages.parts.tables import label_of

shell.enter()

CURVES = {
    "validation/accuracy": "Validation accuracy",
    "validation/loss": "Validation loss",
    "train/loss": "Training loss",
}

st.title("Compare", anchor=False)
finished = {row.id: row for row in feed.listed() if row.state == "finished"}
if not finished:
    st.caption("There is no finished run yet. Runs appear here when they end.")
    shell.link("launch", "Launch one", icon=":material/rocket_launch:")
    st.stop()

if "compared" not in st.session_state:
    named = [run_id for run_id in st.query_params.get("runs", "").split(",") if run_id in finished]
    st.session_state["compared"] = named or list(finished)[:6]


def remember() -> None:
    st.query_params["runs"] = ",".join(st.session_state["compared"])


chosen = st.multiselect(
    "Runs", list(finished), key="compared", format_func=lambda run_id: label_of(finished[run_id]), on_change=remember,
    help="Runs that differ by seed only are put together.",
)  # fmt: skip
if not chosen:
    st.caption("Choose at least one run.")
    st.stop()

with shell.told():
    groups = compared.groups_of([finished[run_id] for run_id in chosen])
    if len({group.rows[0].dataset for group in groups}) > 1:
        st.warning("These runs are on different datasets: their accuracies do not compare.", icon=":material/warning:")
    if len({group.rows[0].model for group in groups}) > 1:
        st.warning(
            "These runs started from different models: what differs may be the model, not the method.",
            icon=":material/warning:",
        )
    with st.container(border=True):
        found = compared.verdict_of(groups)
        st.markdown("**What can be concluded**")
        st.text(found.sentence)
        for caveat in found.caveats:
            st.caption(caveat)
        if len(found.comparisons) > 1:
            with st.expander(f"All {len(found.comparisons)} pairs"):
                for pair in found.comparisons:
                    st.text(pair.sentence)

    st.dataframe(
        compared.lines(groups), hide_index=True, alt="One line per group of runs",
        column_config={
            "Trained": st.column_config.NumberColumn(
                format="localized",
                help="By the method, head apart: as counted at the end of the run, which may differ from what was "
                "planned; mean over the seeds",
            ),
            "Head": st.column_config.NumberColumn(format="localized"),
            "Test accuracy": st.column_config.NumberColumn(format="percent"),
            "Interval": st.column_config.TextColumn("95 % interval", help="In per cent; over seeds or test items"),
            "Learning rate": st.column_config.NumberColumn(format="%.2g"),
            "Time": st.column_config.NumberColumn(
                format="%.1f s", help="Of the whole run, with loading and evaluations; mean over the seeds"
            ),
            "Peak memory": st.column_config.NumberColumn(format="%.0f MiB"),
            "Answer time": st.column_config.NumberColumn(
                format="%.2f x", help="Of one example, in multiples of the base model's; as it is, not merged"
            ),
            "On disk": st.column_config.NumberColumn(format="%.0f KiB", help="The trained result"),
        },
    )  # fmt: skip

    curve = linked.choice("curve", CURVES, "validation/accuracy", key="curve")
    left, right = st.columns(2, gap="large")
    with right:
        draw_chart(pareto_chart(compared.points(groups), theme()), live=False, key="compare")
    with left:
        overlay = overlay_chart(
            compared.curves(groups), curve or "validation/accuracy", theme(), compared.majority(groups)
        )
        draw_chart(overlay, live=False, key="compare")
    masks.overlap_section([finished[run_id] for run_id in chosen])
