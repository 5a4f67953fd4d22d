"""The plan before a launch: what will train, what it will cost, what it can show, and what stands in the way."""

from __future__ import annotations

import json

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine import settings
from engine.errors import BudgetError, EngineError
from engine.jobs import client
from engine.plan import Plan, make_plan
from engine.spec import RunSpec, parse_spec
from engine.stats.power import detectable
from engine.store.run_row import RunRow
from pages.parts import feed, shell, words
from pages.parts.data_look import dataset_of

MOST_SEEDS = 20
_IN_VIEW = st.components.v2.component(
    "peftscope_plan",
    html="<span>\n</span>",
    css=(settings.ASSETS / "launch.css").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def keep_plan_in_view() -> None:
    """Let the column with the plan stay where it is while the form beside it is scrolled."""
    _IN_VIEW(key="plan-in-view", height=1)


def plan_of(spec: RunSpec) -> Plan:
    """The plan of a spec, shared between sessions.

    Raises:
        EngineError: when it cannot be carried out.
    """
    return _plan(json.dumps(spec.canonical()))


@st.cache_resource(ttl=120, max_entries=64, show_spinner=False)
def _plan(spec: str) -> Plan:
    return make_plan(parse_spec(json.loads(spec)))


def plan_card(spec: RunSpec | None, problem: EngineError | None, seeds: int, beside_budget: DeltaGenerator) -> bool:
    """The plan and the button that launches it; without a plan the reason, and the button disabled.

    Args:
        spec: what to plan; None while it is not complete.
        problem: why there is no spec, if that is an error.
        seeds: number of runs.
        beside_budget: place below the budget's field, for a reason that lies in it.

    Returns:
        Whether there is a plan.
    """
    try:
        if problem is not None:
            raise problem
        if spec is None:
            st.caption("It appears when model and data are chosen.")
            _cannot_launch("Choose a model and data first.")
            return False
        with st.spinner("Planning …"):
            plan = plan_of(spec)
        show_plan(plan)
        difference(plan, seeds)
    except EngineError as error:
        shell.show_error(error)
        _cannot_launch(error.what)
        if isinstance(error, BudgetError):
            with beside_budget:
                st.badge("Out of reach", icon=":material/error:", color="red")
                st.text(str(error))
        return False
    with shell.told():
        launch(plan, seeds)
    return True


def _cannot_launch(reason: str) -> None:
    icon = ":material/rocket_launch:"
    st.button("Launch", type="primary", icon=icon, width="stretch", disabled=True, help=words.plain(reason))


def show_plan(plan: Plan) -> None:
    """Parameters, memory, time and warnings."""
    params = plan.params
    with st.grid("auto", min_column_width=120, gap="small"):
        reached = f"{params.requested:,} asked for" if params.requested else "by its settings"
        st.metric("The method trains", words.count(params.method), delta=reached, delta_color="off", delta_arrow="off")
        st.metric("Share of the model", words.share(params.method, params.model), delta=f"of {params.model:,}",
                  delta_color="off", delta_arrow="off")  # fmt: skip
        st.metric("Task head, apart", words.count(params.head), help="Trained densely by every method, never counted.")
        st.metric("Memory", f"~{words.size(plan.memory_bytes)}", help="Estimated peak, from shapes and lengths.")
        st.metric("Time", f"~{words.duration(plan.seconds)}", help="Estimated, for training and evaluation.")
        train = plan.spec.train
        st.metric("Learning rate", f"{train.lr:g}", help=plan.lr_tuned or "Given by you.")
    if params.peak != params.method:
        st.caption(f"While it trains it holds up to {params.peak:,} parameters; {params.method:,} are kept.")
    threads = "one thread" if train.threads == 1 else f"{train.threads} threads"
    st.caption(f"On {train.device}, {threads}, {train.precision}, {train.max_length} tokens per example.")
    for warning in plan.warnings:
        st.warning(words.plain(warning), icon=":material/warning:")


def difference(plan: Plan, seeds: int) -> None:
    """The smallest difference that the test set can show."""
    items = len(dataset_of(plan.spec.dataset).splits["test"])
    st.caption(detectable(items, seeds).sentence, help="Know before you launch what a comparison can show at all.")


def seeded(spec: RunSpec, number: int) -> list[RunSpec]:
    """The same spec with consecutive seeds."""
    train = spec.train
    return [
        spec.model_copy(update={"train": train.model_copy(update={"seed": train.seed + place})})
        for place in range(number)
    ]


def launch(plan: Plan, seeds: int) -> None:
    """Offer identical finished runs, or launch."""
    plans = [plan_of(spec) for spec in seeded(plan.spec, seeds)]
    known: list[RunRow] = [found for each in plans if (found := feed.runs().find_identical(each.spec, each.sources))]
    again = True
    if known:
        with st.container(border=True):
            st.markdown(
                "**This exact run is there already**" if seeds == 1 else f"**{len(known)} of these runs exist**"
            )
            for row in known:
                result = (row.summary or {}).get("accuracy", {}).get("test")
                shown = f"test accuracy {words.points(result)}, " if result is not None else ""
                shell.link("run", f"seed {row.seed}: {shown}{words.ago(row.created)}", run=row.id)
            again = st.toggle("Train again all the same", help="The numbers will be the same, bit for bit.")
    fresh = plans if again else [each for each in plans if each.spec.train.seed not in {row.seed for row in known}]
    many = len(fresh)
    label = "Launch" if many == 1 else f"Launch {many} runs" if many else "Nothing new to launch"
    if st.button(label, type="primary", icon=":material/rocket_launch:", width="stretch", disabled=not fresh):
        ids = _submit(fresh)
        if len(ids) == 1:
            shell.go("run", run=ids[0])
        shell.go("engine")


def _submit(plans: list[Plan]) -> list[str]:
    owner = shell.asker()
    home = settings.home()
    return [client.submit(home, each.spec, each.to_json(), owner=owner) for each in plans]
