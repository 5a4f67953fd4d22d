"""Finds the methods: every public module beside this one declares one or more with `@register`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TypeVar

from pydantic import ValidationError

from engine.errors import SpecError, UnknownName
from engine.methods.contract import Method, MethodConfig
from engine.spec import MethodChoice, explain

M = TypeVar("M", bound=Method)
_METHODS: dict[str, type[Method]] = {}
_NOT_METHODS = {"contract", "registry"}


def register(cls: type[M]) -> type[M]:
    """Class decorator: make a method known under its name.

    Raises:
        ValueError: for a name that is taken or not plain lower case.
    """
    if not cls.name.replace("_", "").isalnum() or cls.name != cls.name.lower():
        raise ValueError(f"method name {cls.name!r} must be lower case letters, digits and underscores")
    if cls.name in _METHODS:
        raise ValueError(f"method name {cls.name!r} is already taken by {_METHODS[cls.name].__module__}")
    _METHODS[cls.name] = cls
    return cls


@functools.cache
def methods() -> dict[str, type[Method]]:
    """All methods by name."""
    import engine.methods as package

    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in _NOT_METHODS and not module.name.startswith("_"):
            importlib.import_module(f"engine.methods.{module.name}")
    return dict(sorted(_METHODS.items()))


def method_named(name: str) -> type[Method]:
    """One method's class.

    Raises:
        UnknownName: with the near names.
    """
    known = methods()
    if name not in known:
        raise UnknownName("method", name, known)
    return known[name]


def config_of(choice: MethodChoice) -> MethodConfig:
    """The validated settings of a choice, defaults filled in.

    Raises:
        UnknownName: for an unknown method.
        SpecError: for a setting that does not exist or is out of bounds.
    """
    method = method_named(choice.name)
    try:
        return method.Config.model_validate(choice.settings)
    except ValidationError as error:
        raise SpecError(
            f"Settings of {method.title} are not valid: {explain(error)}", "Correct these settings."
        ) from None
