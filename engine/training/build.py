"""A resolved spec as objects: the model with its method attached, and the encoded data.

A warm worker keeps untouched base models and encoded datasets in `Caches`; each run gets a
copy, so that nothing of an earlier run is left in a later one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from engine.methods.contract import Method
from engine.models.checkpoint import missing_from
from engine.models.loading import draw, load_classifier
from engine.models.tokenizer import tokenizer_of
from engine.plan import Setting, make_method, read_setting
from engine.spec import RunSpec
from engine.tasks.encoding import Encoded, encode

Kept = TypeVar("Kept")
KEPT = 3
"""Base models and datasets a warm worker keeps."""


@dataclass
class Caches:
    """What a warm worker keeps between runs, least recently used first out."""

    models: OrderedDict[Any, nn.Module] = field(default_factory=OrderedDict)
    placed: OrderedDict[Any, nn.Module] = field(default_factory=OrderedDict)
    """The same on GPUs."""
    splits: OrderedDict[Any, dict[str, Encoded]] = field(default_factory=OrderedDict)


@dataclass
class Built:
    """A run's objects.

    Attributes:
        spec: the resolved spec.
        setting: source, dataset and architecture.
        model: what is trained, with the method attached, on the device.
        method: the outermost method.
        head: name and parameter of the task head's tensors.
        base: untouched base model, on the CPU; shared, never changed.
        placed: the same on the run's device.
        resident: bytes on a GPU that were there before this run's own.
    """

    spec: RunSpec
    setting: Setting
    model: nn.Module
    method: Method
    head: list[tuple[str, nn.Parameter]]
    base: nn.Module
    placed: nn.Module
    resident: int

    @property
    def dense(self) -> list[tuple[str, nn.Parameter]]:
        """What the loop's own AdamW trains: the method's whole tensors, then the head."""
        return [*self.method.parameters(), *self.head]


def build(spec: RunSpec, caches: Caches) -> Built:
    """Load the base model (or copy the cached one), attach the method, move it to the device."""
    setting = read_setting(spec)
    base = base_model(spec, setting, caches)
    placed = _placed_model(base, spec, setting, caches)
    resident = 0 if spec.train.device == "cpu" else torch.cuda.memory_allocated(spec.train.device)
    head_names = {p.name for p in setting.architecture.head}
    method = make_method(spec, setting.architecture)
    # Products beside frozen layers leave the base model as it is, so that all runs of a pass can stand on its tensors.
    shared = spec.train.execution == "packed" and method.packs == "products"
    model = copy_sharing(placed, but=head_names) if shared else copy.deepcopy(placed)
    head = [(name, parameter) for name, parameter in model.named_parameters() if name in head_names]
    model = method.attach(model)  # which attaches what it stands on first
    for _, parameter in head:
        parameter.requires_grad_(True)
    model.train()
    return Built(spec, setting, model, method, head, base, placed, resident)


def base_model(spec: RunSpec, setting: Setting, caches: Caches) -> nn.Module:
    """The untouched base model with this run's head, on the CPU; its backbone is the cached one, if that is there."""
    key = _key(spec, setting)

    def load() -> nn.Module:
        seed = spec.train.seed_of("init")
        return load_classifier(
            setting.source, setting.dataset.labels, head_seed=0, init_seed=seed, dropout=spec.train.dropout
        )

    heads = [row.name for row in setting.architecture.head]
    model = copy_sharing(_kept(caches.models, key, load), but=heads)
    draw(model, heads, spec.train.seed_of("head"))
    return model


def _placed_model(base: nn.Module, spec: RunSpec, setting: Setting, caches: Caches) -> nn.Module:
    """The same on the run's device."""
    device = spec.train.device
    if device == "cpu":
        return base
    heads = [row.name for row in setting.architecture.head]
    kept = _kept(caches.placed, (*_key(spec, setting), device), lambda: copy.deepcopy(base).to(device))
    model, drawn = copy_sharing(kept, but=heads), dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in heads:
                parameter.copy_(drawn[name])
    return model


def _kept(cache: OrderedDict[Any, Kept], key: Any, make: Callable[[], Kept]) -> Kept:
    """What a cache holds, or what is made for it now; the least recently used is dropped."""
    if key not in cache:
        cache[key] = make()
        while len(cache) > KEPT:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def copy_sharing(model: nn.Module, but: Collection[str] = ()) -> nn.Module:
    """A copy that stands on the parameters of `model`, except the named ones, which are its own."""
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if name not in but
    }
    return copy.deepcopy(model, shared)


def _key(spec: RunSpec, setting: Setting) -> tuple[Any, ...]:
    """What a backbone depends on."""
    seed = spec.train.seed_of("init") if missing_from(setting.source) else None
    return (setting.source.sha256, setting.dataset.labels, seed, spec.train.dropout)


def encoded_splits(spec: RunSpec, setting: Setting, caches: Caches) -> dict[str, Encoded]:
    """The three splits as token ids, from the cache if they are there."""
    length = int(spec.train.max_length)
    key = (setting.source.sha256, setting.dataset.sha256, length)

    def read() -> dict[str, Encoded]:
        tokenizer = tokenizer_of(setting.source)
        return {name: encode(split, tokenizer, length) for name, split in setting.dataset.splits.items()}

    return _kept(caches.splits, key, read)


def head_tensors(built: Built) -> dict[str, torch.Tensor]:
    """The head's tensors on the CPU, under their own names."""
    return {name: parameter.detach().cpu().clone() for name, parameter in built.head}
