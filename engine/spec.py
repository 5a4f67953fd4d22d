"""RunSpec: the one description of a run, the same from page, terminal and notebook.

A spec says what the user asked for. Everything that is ``auto`` in it, and every method
setting left out, is filled in by `engine.plan`, and only a resolved spec is hashed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import SpecError, clipped, shown

LARGEST_SEED = 2**31 - 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodChoice(BaseModel):
    """A method by name, with its settings beside the name, optionally on top of another."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    on: MethodChoice | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, as given: everything but ``name`` and ``on``."""
        return dict(self.model_extra or {})

    def with_settings(self, settings: dict[str, Any]) -> MethodChoice:
        """The same method with other settings."""
        return MethodChoice(name=self.name, on=self.on, **settings)


class DatasetChoice(_Part):
    """A dataset: an embedded id, a file, or a hub id, and which of its columns to read."""

    source: str = Field(description="An id from `datasets`, a CSV, TSV or JSON Lines file, or a hub id.")
    text: str | None = Field(None, description="Column with the (first) sentence.")
    pair: str | None = Field(None, description="Column with the second sentence, for sentence pairs.")
    label: str | None = Field(None, description="Column with the label.")
    subset: str | None = Field(None, description="A hub dataset's configuration.")
    header: bool = Field(True, description="Whether a CSV or TSV file starts with its column names.")


class Budget(_Part):
    """How many scalars the method itself may train; the task head is counted apart."""

    params: int | None = None
    percent: float | None = Field(None, description="Per cent of the model's parameters, head apart.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Budget:
        if (self.params is None) == (self.percent is None):
            raise ValueError("give either `params` or `percent`")
        return self


class Seeds(_Part):
    """Seeds of single streams, each falling back to the run's one seed."""

    init: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Initialisation of what the method adds.")
    head: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Initialisation of the task head.")
    data: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Order of the training examples.")
    method: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Random choices of the method while it trains.")


class TrainSpec(_Part):
    """The recipe; see the design's section 3 for why these are the defaults."""

    steps: int = Field(300, ge=1, le=1_000_000, title="Steps", description="Optimizer steps.")
    batch_size: int = Field(16, ge=1, le=1024, title="Batch size", description="Examples per step.")
    lr: float | Literal["auto"] = Field(
        "auto", title="Learning rate", description="Peak learning rate; auto is the method's tuned default."
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, title="Seed", description="Sets every random stream of the run.")
    seeds: Seeds = Field(default_factory=Seeds, title="Separate seeds")
    precision: Literal["auto", "fp32", "tf32"] = Field(
        "auto", title="Precision", description="auto: TF32 products on a GPU that has them, else fp32."
    )
    device: str = Field("auto", title="Device", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | Literal["auto"] = Field("auto", title="CPU threads")
    execution: Literal["auto", "padded", "ragged", "graph", "packed"] = Field(
        "auto",
        title="Step execution",
        description="padded: batches as tables. ragged: without work for padding, on the CPU and without dropout. "
        "graph: recorded once and replayed, on a GPU. packed: the same, in one pass with all waiting runs that "
        "differ in seed, steps, learning rate or rank alone. Same batches, and the same numbers but for rounding; auto "
        "takes what is fastest for one run, or `packed` in a lab that is set up for a class.",
    )
    max_length: int | Literal["auto"] = Field(
        "auto", title="Tokens per example", description="auto: 64 for sentences, 256 for reviews."
    )
    dropout: float = Field(0.0, ge=0, lt=1, title="Dropout")
    weight_decay: float = Field(0.0, ge=0, le=10, title="Weight decay")
    warmup: float = Field(0.06, ge=0, lt=1, title="Warm-up", description="Share of the steps.")
    clip: float = Field(1.0, gt=0, title="Gradient clipping", description="Largest gradient norm.")

    @model_validator(mode="after")
    def _sane(self) -> TrainSpec:
        if self.lr != "auto" and not 0 < self.lr < float("inf"):
            raise ValueError("`lr` must be a positive number")
        if self.threads != "auto" and not 1 <= self.threads <= 512:
            raise ValueError("`threads` must be from 1 to 512")
        if self.max_length != "auto" and not 4 <= self.max_length <= 8192:
            raise ValueError("`max_length` must be from 4 to 8192")
        return self

    def seed_of(self, stream: Literal["init", "head", "data", "method"]) -> int:
        """The seed of one stream: its own if given, else the run's."""
        own = getattr(self.seeds, stream)
        return self.seed if own is None else int(own)


class RunSpec(_Part):
    """What the user asked for."""

    version: Literal[1] = 1
    model: str = "minilm-l6"
    dataset: DatasetChoice = DatasetChoice(source="rotten_tomatoes")
    method: MethodChoice
    budget: Budget | None = None
    train: TrainSpec = TrainSpec()

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """Accept ``dataset: name``, ``method: name`` and ``budget: count`` for the one-field cases."""
        if isinstance(data, dict):
            data = _on_is_a_word(data)
            if isinstance(data.get("dataset"), str):
                data["dataset"] = {"source": data["dataset"]}
            if isinstance(data.get("method"), str):
                data["method"] = {"name": data["method"]}
            if type(data.get("budget")) is int:
                data["budget"] = {"params": data["budget"]}
        return data

    def canonical(self) -> dict[str, Any]:
        """The spec as plain JSON data with sorted, explicit fields."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        """The spec as a YAML document, to copy and to run again."""
        return yaml.safe_dump(self.canonical(), sort_keys=False, allow_unicode=True)

    def hash(self) -> str:
        """Hash of a resolved spec without seeds and device: equal for runs that differ only by seed.

        What the device decided (threads, precision, execution) is part of it.
        """
        data = self.canonical()
        for key in ("seed", "seeds", "device"):
            data["train"].pop(key, None)
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _on_is_a_word(data: Any) -> Any:
    """Undo YAML 1.1, which reads the bare key ``on`` as true."""
    if isinstance(data, dict):
        return {("on" if key is True else key): _on_is_a_word(value) for key, value in data.items()}
    return data


def parse_spec(data: Any) -> RunSpec:
    """Validate plain data as a spec.

    Raises:
        SpecError: naming each wrong field, its value and what is allowed.
    """
    if not isinstance(data, dict):
        raise SpecError("A run spec must be a mapping of fields.", "See README for an example.")
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError("The run spec is not valid: " + explain(error), "Correct these fields.") from None
    except RecursionError:
        raise SpecError("The run spec contains itself.", "Write out what its anchors stand for.") from None


def with_recipe(spec: RunSpec, **changes: Any) -> RunSpec:
    """The spec with other values of its `train`.

    Raises:
        SpecError: for a value that is not allowed.
    """
    data = spec.model_dump(mode="json", exclude_unset=True)
    return parse_spec({**data, "train": {**data.get("train", {}), **changes}})


def explain(error: ValidationError) -> str:
    """One sentence per wrong field of a pydantic error."""
    sentences = []
    for item in error.errors():
        place = clipped(".".join(str(part) for part in item["loc"])) or "the spec"
        value = item.get("input")
        given = f" (given: {shown(value)})" if isinstance(value, str | int | float) else ""
        whole = item["type"] in ("model_type", "model_attributes_type")
        message = "it has fields of its own, each written as `name: value`" if whole else item["msg"]
        sentences.append(f"{place}: {message}{given}")
    return "; ".join(sentences) + "."


def read_spec(path: str | Path) -> RunSpec:
    """Read a spec from a YAML or JSON file.

    Raises:
        SpecError: when the file is missing, malformed, or not a spec.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SpecError(f"Cannot read the spec file {path}: {error.strerror}.", "Check the path.") from None
    except RecursionError:
        raise SpecError(f"The brackets in {path} are nested too deeply.", "Write a spec as README shows it.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{path} is neither YAML nor JSON: {error}.", "Correct its syntax.") from None
    return parse_spec(data)
