"""Compares what a model's config.json claims with what its weights hold, before anything is built from it. Torch-free.

A configuration decides how much memory loading asks for and how long planning takes: a wrong one is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from engine.errors import ModelError, shown
from engine.models.checkpoint import held_layers, held_shape
from engine.models.source import ModelSource

_LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
_WIDTH = ("hidden_size", "dim", "n_embd")
_HEADS = ("num_attention_heads", "n_heads", "n_head")
DROPOUT = ("dropout", "dropout_prob", "pdrop")
"""How settings end that are rates of dropout."""
_ROWS = {
    "token": ("vocab_size",),
    "position": ("max_position_embeddings", "n_positions"),
    "type": ("type_vocab_size",),
    "up": ("intermediate_size", "hidden_dim", "n_inner"),
}
"""Settings that are the number of rows of the tensor with a role."""
_FUNCTIONS = (
    "gelu gelu_10 gelu_accurate gelu_fast gelu_new gelu_python gelu_python_tanh gelu_pytorch_tanh hardswish laplace "
    "leaky_relu linear mish prelu quick_gelu relu relu2 relu6 sigmoid silu sqrtsoftplus swish tanh xielu"
)
"""The activation functions that transformers has; it can be asked itself only with torch."""


def check_config(source: ModelSource) -> None:
    """Refuse a configuration that the model's weights contradict, or that no model can be built from.

    Raises:
        ModelError: naming the setting and its value.
    """
    layers, held = _whole(source, _LAYERS, least=1), held_layers(source)
    if layers is not None and layers > held:
        _refuse(source, _LAYERS, f"its weights hold {held:,} layers")
    for role, keys in _ROWS.items():
        _check_rows(source, role, keys)
    width = _whole(source, _WIDTH, least=1)
    norm = _held(source, "norm_1")
    if width is not None and norm and width != norm[0]:
        _refuse(source, _WIDTH, f"its weights are {norm[0]:,} wide")
    if width is not None:
        _check_heads(source, width)
    pad, token = source.config["pad_token_id"], _held(source, "token")
    if pad is not None and token and pad >= token[0]:
        _refuse(source, ("pad_token_id",), f"its weights have {token[0]:,} tokens")
    activation = _given(source, ("hidden_act", "activation_function", "activation"))
    if activation is not None and activation[1] not in _FUNCTIONS.split():
        _refuse(source, activation[:1], f"there is no such function; known are {', '.join(_FUNCTIONS.split())}")
    _check_dropout(source)


def _check_rows(source: ModelSource, role: str, keys: tuple[str, ...]) -> None:
    rows, shape = _whole(source, keys, least=0), _held(source, role)
    if rows is None or not shape:
        return
    held = shape[1] if role == "up" and source.family.transposed else shape[0]
    if rows != held:
        _refuse(source, keys, f"its weights have {held:,}")


def _check_heads(source: ModelSource, width: int) -> None:
    heads, own = _whole(source, _HEADS, least=1), _whole(source, ("head_dim",), least=1)
    queries = _held(source, "q")
    if heads is None:
        return
    if own is None and width % heads:
        _refuse(source, _HEADS, f"a width of {width:,} cannot be divided among so many")
    if own is not None and queries and heads * own != queries[0]:
        _refuse(source, ("head_dim",), f"its weights have {queries[0]:,} query rows for {heads:,} heads")
    shared = _whole(source, ("num_key_value_heads",), least=1)
    if shared is not None and heads % shared:
        _refuse(source, ("num_key_value_heads",), f"{heads:,} heads cannot be divided among so many")


def _check_dropout(source: ModelSource) -> None:
    """Rates are set by the run, but loading asks for numbers; a classifier's own may be left open."""
    for key, rate in source.config.items():
        if not key.endswith(DROPOUT) or (key in ("classifier_dropout", "cls_dropout") and rate is None):
            continue
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise _wrong(source, key, "it must be a number from 0 to 1")


def _held(source: ModelSource, role: str) -> tuple[int, ...] | None:
    """Shape in the checkpoint of the first weight with a role."""
    names = (module for module in source.family.modules(1) if source.family.role(f"{module}.weight") == role)
    return next((shape for name in names if (shape := held_shape(source, name, "weight"))), None)


def _given(source: ModelSource, keys: Iterable[str]) -> tuple[str, Any] | None:
    """The first of some settings that the configuration has, and its value."""
    return next(((key, source.config[key]) for key in keys if source.config.get(key) is not None), None)


def _whole(source: ModelSource, keys: Iterable[str], *, least: int) -> int | None:
    """The value of the first of some settings that there is.

    Raises:
        ModelError: when it is not a whole number from `least`.
    """
    found = _given(source, keys)
    if found is None:
        return None
    key, value = found
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse(source, (key,), f"it must be a whole number from {least}")
    return int(value)


def _refuse(source: ModelSource, keys: Iterable[str], why: str) -> NoReturn:
    found = _given(source, keys)
    raise _wrong(source, found[0] if found else "nothing", why)


def _wrong(source: ModelSource, key: str, why: str) -> ModelError:
    says = f"{source.folder / 'config.json'} says {key}: {shown(source.config.get(key))}"
    return ModelError(f"{says}, but {why}.", "Correct it, or download the model again.")
