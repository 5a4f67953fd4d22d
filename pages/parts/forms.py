"""Forms made from a pydantic schema: a widget per field, help on each, advanced ones behind an expander.

The widgets only help to fill in; what they return is validated by the engine like any other input.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import streamlit as st
from pydantic import BaseModel

Field = dict[str, Any]


def settings_form(
    model: type[BaseModel],
    *,
    key: str,
    only: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Widgets for the fields of a model.

    Args:
        model: whose JSON schema is drawn.
        key: distinguishes this form on the page; change it to start afresh.
        only: these fields alone.
        leave_out: not these.
        given: values to begin with instead of the defaults.

    Returns:
        The values that differ from the defaults.
    """
    fields = fields_of(model)
    chosen = [name for name in fields if (only is None or name in only) and name not in leave_out]
    plain = [name for name in chosen if fields[name].get("level") != "advanced"]
    advanced = [name for name in chosen if fields[name].get("level") == "advanced"]
    start = given or {}
    values = _grid(fields, plain, key, start)
    if advanced:
        with st.expander("Advanced settings", key=f"{key}-advanced"):
            values |= _grid(fields, advanced, key, start)
    return {name: value for name, value in values.items() if _differs(value, _default(fields[name]))}


def fields_of(model: type[BaseModel]) -> dict[str, Field]:
    """The schema's properties with references resolved, in order."""
    schema = model.model_json_schema()
    return {name: _resolved(field, schema.get("$defs", {})) for name, field in schema.get("properties", {}).items()}


def _resolved(field: Field, definitions: dict[str, Field]) -> Field:
    """A field with its reference, or that of its one non-null choice, filled in."""
    if "$ref" in field:
        field = definitions[field["$ref"].rpartition("/")[2]] | field
    choices = [choice for choice in field.get("anyOf", []) if choice.get("type") != "null" and "const" not in choice]
    if len(choices) == 1:
        optional = {"optional": True, "word": _word(field)}
        field = _resolved(choices[0], definitions) | {k: v for k, v in field.items() if k != "anyOf"} | optional
    return field


def _word(field: Field) -> str | None:
    """What stands for an empty widget: the constant that the schema allows besides a value, else nothing."""
    return next((choice["const"] for choice in field["anyOf"] if "const" in choice), None)


def _default(field: Field) -> Any:
    return field.get("default")


def _differs(value: Any, default: Any) -> bool:
    """Whether a value says something that its default does not; an empty mapping says nothing."""
    return value != default and not (default is None and value in ({}, []))


def _grid(fields: dict[str, Field], names: list[str], key: str, start: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    with st.grid("auto", min_column_width=230):
        for name in names:
            values[name] = _widget(fields[name], name, f"{key}-{name}", start.get(name, _default(fields[name])))
    return values


def help_of(field: Field) -> str:
    """Description, default and where the default comes from."""
    default = _default(field)
    known = "" if default is None or default == {} else f" Default: {_shown(default)}"
    source = f" ({field['source']})" if known and field.get("source") else ""
    return f"{field.get('description', '')}{known}{source}".strip()


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _widget(field: Field, name: str, key: str, value: Any) -> Any:
    label = field.get("title", name)
    common: dict[str, Any] = {"key": key, "help": help_of(field), "persist_state": "session"}
    kind = field.get("type")
    if "enum" in field:
        return st.selectbox(label, field["enum"], index=field["enum"].index(value), **common)
    if kind == "boolean":
        return st.toggle(label, value=bool(value), **common)
    if kind in ("integer", "number"):
        return _number(field, label, value, common)
    if kind == "array":
        return _several(field, label, value, common)
    if kind == "object" and "properties" not in field:
        return _mapping(label, value, common)
    if kind == "object":
        with st.container(border=True, gap="xsmall"):
            st.caption(label)
            parts = field["properties"]
            resolved = {part: _resolved(parts[part], {}) for part in parts}
            inner = _grid(resolved, list(parts), key, value or {})
        return {part: number for part, number in inner.items() if number is not None}
    text = st.text_input(label, value="" if value is None else str(value), **common)
    return text or (None if field.get("optional") else text)


def _number(field: Field, label: str, value: Any, common: dict[str, Any]) -> Any:
    whole = field["type"] == "integer"
    kind: Any = int if whole else float
    word = field.get("word")
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    look: dict[str, Any] = {
        "min_value": None if low is None else kind(low),
        "max_value": None if high is None else kind(high),
        "value": None if value is None or value == word else kind(value),
        "step": 1 if whole else _step(value, high),
        "format": "%d" if whole else "%.6g",
        "placeholder": str(word or "automatic") if field.get("optional") else None,
    }
    number = st.number_input(label, **look, **common)
    return word if number is None and field.get("optional") else number


def _step(value: Any, high: float | None) -> float:
    """A tenth of the present value, or of the range."""
    size = abs(float(value)) if isinstance(value, int | float) and value else (high or 0.1)
    return float(f"{size / 10:.1g}")


def _several(field: Field, label: str, value: Any, common: dict[str, Any]) -> list[Any]:
    options = field.get("items", {}).get("enum")
    if options:
        return list(st.multiselect(label, options, default=list(value or []), **common))
    text = st.text_input(label, value=", ".join(map(str, value or [])), placeholder="separated by commas", **common)
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapping(label: str, value: Any, common: dict[str, Any]) -> Any:
    text = st.text_area(label, value=json.dumps(value or {}), height=100, **common)
    try:
        return json.loads(text)
    except ValueError as error:
        st.text(f"{label} is not valid JSON: {error}")
        return value
