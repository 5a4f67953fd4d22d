"""A resolved spec as objects: the model with its method attached, and the encoded data.

A warm worker keeps untouched base models and encoded datasets in `Caches`; each run gets a
copy, so that nothing of an earlier run is left in a later one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from engine.methods.contract import Method
from engine.models.loading import load_classifier
from engine.models.tokenizer import tokenizer_of
from engine.plan import Setting, make_method, read_setting
from engine.spec import RunSpec
from engine.tasks.encoding import Encoded, encode

KEPT = 3
"""Base models and datasets a warm worker keeps."""


@dataclass
class Caches:
    """What a warm worker keeps between runs, least recently used first out."""

    models: OrderedDict[Any, nn.Module] = field(default_factory=OrderedDict)
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
    """

    spec: RunSpec
    setting: Setting
    model: nn.Module
    method: Method
    head: list[tuple[str, nn.Parameter]]
    base: nn.Module

    @property
    def dense(self) -> list[tuple[str, nn.Parameter]]:
        """What the loop's own AdamW trains: the method's whole tensors, then the head."""
        return [*self.method.parameters(), *self.head]


def build(spec: RunSpec, caches: Caches) -> Built:
    """Load the base model (or copy the cached one), attach the method, move it to the device."""
    setting = read_setting(spec)
    base = base_model(spec, setting, caches)
    model = copy.deepcopy(base)
    head_names = {p.name for p in setting.architecture.head}
    head = [(name, parameter) for name, parameter in model.named_parameters() if name in head_names]
    model.to(spec.train.device)
    method = make_method(spec, setting.architecture)
    model = method.attach(model)  # which attaches what it stands on first
    for _, parameter in head:
        parameter.requires_grad_(True)
    model.train()
    return Built(spec, setting, model, method, head, base)


def base_model(spec: RunSpec, setting: Setting, caches: Caches) -> nn.Module:
    """The untouched base model with this run's head, on the CPU, from the cache if it is there."""
    train = spec.train
    key = (setting.source.sha256, setting.dataset.labels, train.seed_of("head"), train.seed_of("init"), train.dropout)
    if key not in caches.models:
        caches.models[key] = load_classifier(
            setting.source,
            setting.dataset.labels,
            head_seed=train.seed_of("head"),
            init_seed=train.seed_of("init"),
            dropout=train.dropout,
        )
        while len(caches.models) > KEPT:
            caches.models.popitem(last=False)
    caches.models.move_to_end(key)
    return caches.models[key]


def encoded_splits(spec: RunSpec, setting: Setting, caches: Caches) -> dict[str, Encoded]:
    """The three splits as token ids, from the cache if they are there."""
    length = int(spec.train.max_length)
    key = (setting.source.sha256, setting.dataset.sha256, length)
    if key not in caches.splits:
        tokenizer = tokenizer_of(setting.source)
        caches.splits[key] = {name: encode(split, tokenizer, length) for name, split in setting.dataset.splits.items()}
        while len(caches.splits) > KEPT:
            caches.splits.popitem(last=False)
    caches.splits.move_to_end(key)
    return caches.splits[key]


def head_tensors(built: Built) -> dict[str, torch.Tensor]:
    """The head's tensors on the CPU, under their own names."""
    return {name: parameter.detach().cpu().clone() for name, parameter in built.head}
