"""The widgets that make up a spec: model, dataset, method, budget, training."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import streamlit as st

from engine.errors import EngineError
from engine.methods.contract import Method
from engine.methods.registry import methods
from engine.models.catalogue import (
    MINILM,
    SHIPPED,
    ModelEntry,
    architecture_of,
    default_model,
    models,
    resolve_model,
)
from engine.settings import UPLOAD_BYTES, UPLOAD_ROWS
from engine.spec import RunSpec, TrainSpec
from engine.tasks.catalogue import datasets
from engine.tasks.files import SUFFIXES, inspect_file, store_upload
from pages.parts.forms import fields_of, settings_form

OWN_FOLDER, HUB = "A folder on this machine", "A model from the hub"
UPLOAD, OWN_FILE, HUB_DATA = "Upload a file", "A file on this machine", "A dataset from the hub"
FAMILIES = {
    "baseline": "Baselines",
    "selective": "Selective: train a few of the weights that are there",
    "reparameterised": "Re-parameterised: learn a structured change",
    "additive": "Additive: add small modules",
    "mixture": "Mixtures",
    "zeroth-order": "Without gradients",
}
_SHOWN_FIRST = ("steps", "batch_size", "lr", "seed")


def choose_model(given: RunSpec | None, key: str) -> str:
    """A model's id, folder or hub id; empty while none is given."""
    entries = {entry.id: entry for entry in models()}
    asked = given.model if given else default_model()
    options = [*entries, OWN_FOLDER, HUB]
    start = asked if asked in entries else HUB if "/" in asked and not asked.startswith(("/", ".", "~")) else OWN_FOLDER
    choice = st.selectbox(
        "Model",
        options,
        index=options.index(start),
        key=f"{key}-model",
        persist_state="session",
        format_func=lambda name: entries[name].title if name in entries else name,
    )
    if choice in entries:
        _about(entries[choice])
        return choice
    if choice == OWN_FOLDER:
        return st.text_input(
            "Folder",
            value=asked if start == OWN_FOLDER else "",
            key=f"{key}-folder",
            persist_state="session",
            placeholder="/path/to/a/folder/with/config.json/and/model.safetensors",
        ).strip()
    return st.text_input(
        "Hub id",
        value=asked if start == HUB else "",
        key=f"{key}-hub",
        persist_state="session",
        placeholder="owner/name",
        help="Fetched once, then kept. Without a network connection only what is already there can be used.",
    ).strip()


def _about(entry: ModelEntry) -> None:
    st.caption(entry.description if entry.available else entry.reason)
    card = SHIPPED / entry.id / "README.md"
    if card.is_file():
        with st.popover("Model card", type="tertiary", icon=":material/description:"):
            st.markdown(card.read_text(encoding="utf-8"))


def choose_dataset(given: RunSpec | None, key: str) -> dict[str, Any]:
    """A dataset choice as plain data; empty while none is given."""
    entries = {entry.id: entry for entry in datasets()}
    asked = given.dataset.source if given else next(iter(entries))
    options = [*entries, UPLOAD, OWN_FILE, HUB_DATA]
    start = asked if asked in entries else OWN_FILE
    choice = st.selectbox(
        "Dataset",
        options,
        index=options.index(start),
        key=f"{key}-dataset",
        persist_state="session",
        format_func=lambda name: entries[name].title if name in entries else name,
    )
    if choice in entries:
        entry = entries[choice]
        st.caption(entry.description if entry.available else entry.reason)
        return {"source": choice}
    if choice == HUB_DATA:
        return _hub_dataset(key)
    source = (
        _uploaded(key)
        if choice == UPLOAD
        else st.text_input(
            "Path of the file",
            value=asked if start == OWN_FILE else "",
            key=f"{key}-path",
            persist_state="session",
            placeholder="/path/to/file.csv",
        ).strip()
    )
    return _columns(source, key) if source else {}


def _hub_dataset(key: str) -> dict[str, Any]:
    left, right = st.columns(2)
    source = left.text_input("Hub id", key=f"{key}-data-hub", persist_state="session", placeholder="owner/name").strip()
    subset = right.text_input(
        "Configuration", key=f"{key}-subset", persist_state="session", placeholder="optional"
    ).strip()
    return {"source": source, "subset": subset or None} if source else {}


def _uploaded(key: str) -> str:
    """The path of an uploaded file, kept in the store under the hash of its content."""
    file = st.file_uploader(
        "File with a text and a label column",
        type=[suffix.lstrip(".") for suffix in SUFFIXES],
        max_upload_size=UPLOAD_BYTES // 2**20,
        key=f"{key}-upload",
        help=f"CSV, TSV or JSON Lines, up to {UPLOAD_BYTES // 2**20} MB and {UPLOAD_ROWS:,} rows.",
    )
    return str(store_upload(file.getvalue(), file.name)) if file else ""


def _columns(source: str, key: str) -> dict[str, Any]:
    """Which columns of a file to read, beginning with the likely ones."""
    look = inspect_file(source)
    names: list[str | None] = list(look.columns)

    def pick(place: Any, label: str, guess: str | None, optional: bool) -> str | None:
        options = [None, *names] if optional else names
        start = options.index(guess) if guess in options else 0
        shown = {None: "none"} | {name: name if look.header else f"column {int(name) + 1}" for name in names if name}
        return place.selectbox(label, options, index=start, format_func=shown.get, key=f"{key}-{label}-{source}")

    left, middle, right = st.columns(3)
    text = pick(left, "Text column", look.guesses.text, False)
    pair = pick(middle, "Second text, for pairs", look.guesses.pair, True)
    label = pick(right, "Label column", look.guesses.label, False)
    kind = f"{look.rows:,} rows, {look.encoding}, " + ("with" if look.header else "without") + " column names."
    st.caption(kind)
    with st.expander("The file's first rows"):
        st.dataframe(look.sample, hide_index=True, alt="The file's first rows")
    return {"source": source, "text": text, "pair": pair, "label": label, "header": look.header}


def choose_method(given: RunSpec | None, key: str, budgeted: bool) -> dict[str, Any]:
    """A method with the settings that differ from its defaults."""
    known = methods()
    asked = given.method.name if given else st.query_params.get("method", "id3")
    order = sorted(known, key=lambda name: (list(FAMILIES).index(known[name].family), known[name].paper.year))
    start = order.index(asked) if asked in order else 0
    name = st.selectbox(
        "Method",
        order,
        index=start,
        key=f"{key}-method",
        persist_state="session",
        format_func=lambda name: f"{known[name].title} · {known[name].family}",
    )
    method = known[name]
    st.caption(summary_of(method))
    before = given.method.settings if given and given.method.name == name else {}
    chosen: dict[str, Any] = {"name": name, **_settings(method, before, f"{key}-{name}", budgeted)}
    if method.composes:
        chosen |= _standing_on(given, key, order)
    return chosen


def _settings(method: type[Method], before: dict[str, Any], key: str, budgeted: bool) -> dict[str, Any]:
    fields = fields_of(method.Config)
    solved = [name for name, field in fields.items() if budgeted and field.get("budget")]
    if not fields:
        st.caption("This method has no settings of its own.")
    elif solved:
        st.caption("Set by the budget: " + ", ".join(fields[name].get("title", name).lower() for name in solved))
    return settings_form(method.Config, key=key, given=before, leave_out=solved)


def _standing_on(given: RunSpec | None, key: str, order: list[str]) -> dict[str, Any]:
    """For a method that can be put on top of another: which one."""
    known = methods()
    options = [
        None,
        *(name for name in order if known[name].steady and "mask" not in known[name].views and name != "full"),
    ]
    asked = given.method.on.name if given and given.method.on else None
    below = st.selectbox(
        "On top of",
        options,
        index=options.index(asked) if asked in options else 0,
        key=f"{key}-on",
        persist_state="session",
        format_func=lambda name: known[name].title if name else "the model itself",
        help="The method then chooses among what the other one adds, instead of among the model's own weights.",
    )
    return {"on": {"name": below}} if below else {}


def summary_of(method: type[Method]) -> str:
    """The first sentence of a method's text."""
    return (method.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


@st.cache_data(ttl=600, max_entries=32, show_spinner=False)
def _common_budget(model: str) -> tuple[int, str]:
    """The budget that is offered first, and why; that of MiniLM for a model that is not there yet."""
    for ref in (model, MINILM):
        with suppress(EngineError):
            return architecture_of(resolve_model(ref), 2).common_budget
    return 1000, "a round number"


def choose_budget(given: RunSpec | None, key: str, model: str) -> dict[str, Any] | None:
    """A budget as plain data, or None for the method's own settings."""
    own, count, share = "The method's settings decide", "Number of parameters", "Per cent of the model"
    before = given.budget if given else None
    start = own if given and not before else share if before and before.percent is not None else count
    kind = st.segmented_control(
        "Budget",
        [count, share, own],
        default=start,
        required=True,
        key=f"{key}-budget",
        persist_state="session",
        help="What the method itself may train. The task head is trained by every method and counted apart.",
    )
    if kind == count:
        common, reason = _common_budget(model)
        value = st.number_input(
            "Parameters",
            min_value=0,
            value=before.params if before and before.params is not None else common,
            step=1000,
            key=f"{key}-params" if before else f"{key}-params-{model}",
            persist_state="session",
            help=f"{common:,} is a fair common budget on this model: {reason}.",
        )
        return {"params": value}
    if kind == share:
        percent = before.percent if before and before.percent is not None else 0.1
        return {
            "percent": st.number_input(
                "Per cent",
                min_value=0.0,
                value=float(percent),
                step=0.05,
                format="%.6g",
                key=f"{key}-percent",
                persist_state="session",
            )
        }
    return None


def choose_training(given: RunSpec | None, key: str) -> dict[str, Any]:
    """The recipe's fields that differ from the defaults."""
    # How steps were executed then is not something that anybody asked for.
    before = given.train.model_dump() | {"execution": "auto"} if given else {}
    chosen = settings_form(TrainSpec, key=f"{key}-train", only=_SHOWN_FIRST, given=before)
    with st.expander("The rest of the recipe"):
        chosen |= settings_form(TrainSpec, key=f"{key}-train-rest", leave_out=_SHOWN_FIRST, given=before)
    return chosen
