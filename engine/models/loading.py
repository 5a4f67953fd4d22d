"""Loads a classifier: real backbone weights, a head drawn from its own seed. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig
from transformers.utils import logging

from engine.errors import ModelError
from engine.models.checkpoint import architecture_of, missing_from
from engine.models.claims import DROPOUT
from engine.models.source import ModelSource


def load_classifier(
    source: ModelSource, labels: Sequence[str], *, head_seed: int, init_seed: int, dropout: float
) -> nn.Module:
    """The model as a classifier, in fp32 on the CPU and in eval mode.

    The head is always new: N(0, initializer_range) with zero biases, from a generator of its
    own, whatever head the checkpoint has. Backbone tensors that the checkpoint lacks
    (`missing_from` names them) are drawn the same way from `init_seed`. The global random
    state is neither read nor changed.

    Args:
        source: a resolved model.
        labels: names of the classes; they become the configuration's id2label and label2id.
        head_seed: seed of the head's generator.
        init_seed: seed of the generator of missing backbone tensors.
        dropout: rate of every dropout layer.

    Raises:
        ModelError: when the files do not make a whole model of a supported type.
    """
    config = _config(source, labels, dropout)
    model = _pretrained(source, config)
    _check_map(source, model, len(labels))
    _check_finite(source, model)
    architecture = architecture_of(source, len(labels))
    draw(model, [row.name for row in architecture.head], head_seed)
    draw(model, missing_from(source), init_seed)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model.eval()


def load_language_model(source: ModelSource) -> nn.Module:
    """A decoder with its output layer, in fp32 on the CPU and in eval mode.

    Raises:
        ModelError: for an encoder, which cannot continue a text, or files that are not a whole model.
    """
    if source.family.kind != "decoder":
        raise ModelError(f"{source.title} is an encoder: it cannot continue a text.", "Choose a decoder: nano-llama.")
    model, report = _from_files(AutoModelForCausalLM, source)
    if report["missing_keys"]:
        raise ModelError(
            f"{source.folder} lacks {min(report['missing_keys'])}, so it is not a whole language model.",
            "Save it with AutoModelForCausalLM.",
        )
    _check_finite(source, model)
    return model.eval()


def _config(source: ModelSource, labels: Sequence[str], dropout: float) -> PretrainedConfig:
    names = [str(name) for name in labels]
    try:
        config = AutoConfig.from_pretrained(
            source.folder,
            local_files_only=True,
            trust_remote_code=False,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
            pad_token_id=source.config["pad_token_id"],
        )
    except Exception as error:  # whatever the library's own checks of its settings raise
        raise _unusable(source, error) from None
    # One sentence pair or text, one class: also where a checkpoint was trained for regression.
    config.problem_type = "single_label_classification"
    for key, value in config.to_dict().items():
        if key.endswith(DROPOUT) and isinstance(value, float | int):
            setattr(config, key, dropout)
    return config


def _pretrained(source: ModelSource, config: PretrainedConfig) -> nn.Module:
    """The classifier with every tensor of the checkpoint in place."""
    # A head for other classes has another shape; what else differs is refused below.
    model, report = _from_files(AutoModelForSequenceClassification, source, config=config, ignore_mismatched_sizes=True)
    _check_report(source, report)
    return model


def _from_files(kind: Any, source: ModelSource, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model of one of transformers' kinds in fp32, and the library's report on what it found.

    Raises:
        ModelError: when the files cannot be read.
    """
    with torch.random.fork_rng(devices=[]), _quietly():
        try:
            model, report = kind.from_pretrained(
                source.folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **more,
            )
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # a wrong setting is a KeyError, TypeError, ZeroDivisionError, ... of the library
            raise _unusable(source, error) from None
    return model, report


def _unusable(source: ModelSource, error: Exception) -> ModelError:
    """What the library raised about a model's files, in words."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ModelError(f"{source.folder} cannot be loaded ({what}).", "Check its config.json, or download it again.")


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Transformers draws one on the terminal for every file it reads or writes, of which there are one or two here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars and the library's table of new tensors: `_check_report` judges them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_progress_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


def _check_report(source: ModelSource, report: dict[str, Any]) -> None:
    """Refuse a checkpoint in which anything but head and pooler is absent or has another shape."""
    architecture = architecture_of(source, 2)
    free = {p.name for p in architecture.head} | set(missing_from(source))
    wrong = {str(name) for name in report["missing_keys"]} | {str(item[0]) for item in report["mismatched_keys"]}
    if wrong - free:
        raise ModelError(
            f"{source.folder} does not fit its config.json: {len(wrong - free)} tensors are absent or have "
            f"another shape, the first {min(wrong - free)}.",
            "Save or download the model again.",
        )


def _check_map(source: ModelSource, model: nn.Module, labels: int) -> None:
    """Refuse a model whose parameters are not those its plan was made with."""
    planned = {(p.name, p.shape) for p in architecture_of(source, labels).parameters}
    actual = {(name, tuple(p.shape)) for name, p in model.named_parameters()}
    if planned != actual:
        raise ModelError(
            f"The loaded model has other parameters than its files announce, among them {min(planned ^ actual)}.",
            "This model cannot be used; please report its type and configuration.",
        )


def _check_finite(source: ModelSource, model: nn.Module) -> None:
    """Refuse weights that are not numbers: nothing that is computed with them would be one."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor.detach()).all():
            raise ModelError(
                f"The weights in {source.folder} hold NaN or infinite values, the first in {name}.",
                "Save or download the model again.",
            )


def draw(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Fill the named weights with N(0, initializer_range) and biases with 0, in this order, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", 0.02))
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in (tensors[name] for name in names):
            if tensor.ndim > 1:
                tensor.normal_(0.0, spread, generator=generator)
            else:
                tensor.zero_()
