"""Spec to plan: what will really happen, worked out before anything is trained, without torch.

Every ``auto`` is resolved here, the budget is solved here, and the resolved spec is what is
stored, hashed and trained.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from engine import estimate, settings
from engine.errors import BudgetError, SpecError
from engine.methods.contract import Context, Method, MethodConfig
from engine.methods.registry import config_of, method_named
from engine.models.architecture import Architecture
from engine.models.catalogue import ModelSource, architecture_of, resolve_model
from engine.models.tokenizer import tokenizer_of
from engine.resolution import max_length, resolved_train
from engine.spec import DatasetChoice, MethodChoice, RunSpec
from engine.tasks.catalogue import is_file, load_dataset
from engine.tasks.dataset import Dataset
from engine.tasks.encoding import encode

CURVE_ITEMS = 256
"""Validation examples measured while training."""
SAMPLED = 512
"""Training examples tokenised to estimate lengths."""


@dataclass(frozen=True)
class Params:
    """Parameter counts of a plan.

    Attributes:
        requested: the budget in parameters, None when the method's own settings rule.
        method: what the method trains.
        head: the task head, trained by every method and counted apart.
        total: method and head.
        model: the backbone.
        peak: what the method holds at most while it trains, where that is more than `method`.
    """

    requested: int | None
    method: int
    head: int
    total: int
    model: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """A resolved spec with what it will train and cost.

    Attributes:
        spec: the resolved spec, without any ``auto``.
        spec_hash: equal for runs that differ only by seeds and device; what a device decides, such as
            precision, counts.
        params: the counts.
        lr_tuned: how the default learning rate was found; empty when the user gave one.
        memory_bytes, seconds: estimates.
        warnings: what the user should know before launching.
        sources: sha256 of the model's weights and of the data as read now.
    """

    spec: RunSpec
    spec_hash: str
    params: Params
    lr_tuned: str
    memory_bytes: int
    seconds: float
    warnings: tuple[str, ...]
    sources: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as stored with the run and printed by the command line."""
        return asdict(replace(self, spec=None)) | {"spec": self.spec.canonical()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Setting:
    """The parts that a resolved spec refers to."""

    source: ModelSource
    dataset: Dataset
    architecture: Architecture


def make_plan(spec: RunSpec) -> Plan:
    """Resolve a spec and say what it will do. Resolving a resolved spec changes nothing.

    Raises:
        SpecError: for unknown names, settings out of bounds, or a device that is not there.
        BudgetError: for a budget of zero, above the model, or out of the method's reach.
        DataError, ModelError, PathRefused: from the dataset and the model.
    """
    setting = read_setting(spec)
    method = method_named(spec.method.name)
    rate = method.lr.of(setting.source.id)
    model_size = sum(p.size for p in setting.architecture.backbone)
    requested = requested_params(spec, model_size)
    choice = solved_choice(spec.method, setting.architecture, requested)
    config = config_of(choice)
    table = outer_architecture(choice, setting.architecture)
    train = resolved_train(
        spec.train,
        rate.value,
        setting.source.family,
        setting.architecture,
        setting.dataset,
        drops=_drops(choice),
        captured=bool(method.captured),
        packs=bool(method.packs) and choice.on is None,
    )
    resolved = spec.model_copy(
        update={"method": choice, "train": train, "dataset": _placed(spec.dataset), "model": setting.source.id}
    )
    make_method(resolved, setting.architecture)  # which refuses what cannot stand on what
    params = _count(method, table, config, setting.architecture, requested)
    work = workload(resolved, setting, params)
    return Plan(
        spec=resolved,
        spec_hash=resolved.hash(),
        params=params,
        lr_tuned=rate.tuned if spec.train.lr == "auto" else "",
        memory_bytes=sum(estimate.memory_parts(work, train.device).values()),
        seconds=estimate.seconds(work, train.device, int(train.threads), settings.home()),
        warnings=tuple(_warnings(method, table, config, params, resolved, setting.dataset)),
        sources={"weights": setting.source.sha256, "data": setting.dataset.sha256},
    )


def _drops(choice: MethodChoice | None) -> bool:
    """Whether a method, or one it stands on, has dropout of its own."""
    return choice is not None and (getattr(config_of(choice), "dropout", 0) > 0 or _drops(choice.on))


def _placed(choice: DatasetChoice) -> DatasetChoice:
    """The dataset with a file's whole path: the engine may have been started from another folder."""
    source = choice.source.strip()
    return choice.model_copy(update={"source": str(settings.allowed_path(source)) if is_file(source) else source})


def read_setting(spec: RunSpec) -> Setting:
    """Load the dataset and the model's map that a spec names."""
    source = resolve_model(spec.model)
    dataset = load_dataset(spec.dataset)
    architecture = architecture_of(source, len(dataset.labels))
    length = max_length(spec.train, architecture, dataset)
    return Setting(source, dataset, architecture.with_frozen_rows(max_length=length, pairs=dataset.is_pair))


def requested_params(spec: RunSpec, model_size: int) -> int | None:
    """The budget as a number of parameters.

    Raises:
        BudgetError: when it is below one or above the model.
    """
    if spec.budget is None:
        return None
    if spec.budget.params is not None:
        wanted = spec.budget.params
    else:
        wanted = round(float(spec.budget.percent or 0) / 100 * model_size)
    if wanted < 1:
        raise BudgetError(f"A budget of {wanted:,} parameters trains nothing.", "Ask for at least one.")
    if wanted > model_size:
        raise BudgetError(
            f"A budget of {wanted:,} parameters is above the model, which has {model_size:,}.",
            "Ask for at most that many, or for a percentage up to 100.",
        )
    return wanted


def outer_architecture(choice: MethodChoice, architecture: Architecture) -> Architecture:
    """The map that a method sees: the model's, or what the method below it trains.

    Raises:
        SpecError: when the outer method cannot stand on another, or on this one.
    """
    if choice.on is None:
        return architecture
    method = method_named(choice.name)
    if not method.composes:
        raise SpecError(f"{method.title} cannot be put on top of another method.", "Leave out `on`.")
    inner = method_named(choice.on.name)
    todo = "Put it on a method that adds weights, such as LoRA, or leave out `on`."
    if not inner.differentiates:
        raise SpecError(f"{method.title} cannot stand on {inner.title}, which works without gradients.", todo)
    below = outer_architecture(choice.on, architecture)
    rows = inner.trainables(below, config_of(choice.on))
    if not rows:
        raise SpecError(f"{method.title} cannot stand on {inner.title}, which trains no weight of this model.", todo)
    return replace(architecture, parameters=(*rows, *architecture.head))


def make_method(spec: RunSpec, architecture: Architecture) -> Method:
    """The method of a resolved spec, with what it stands on, not yet attached.

    Raises:
        SpecError: when a method refuses to stand on another.
    """

    def made(choice: MethodChoice) -> Method:
        context = Context(
            architecture=outer_architecture(choice, architecture),
            steps=spec.train.steps,
            init_seed=spec.train.seed_of("init"),
            method_seed=spec.train.seed_of("method"),
            device=spec.train.device,
            weight_decay=spec.train.weight_decay,
            clip=spec.train.clip,
        )
        inner = made(choice.on) if choice.on else None
        return method_named(choice.name)(config_of(choice), context, inner)

    return made(spec.method)


def solved_choice(choice: MethodChoice, architecture: Architecture, requested: int | None) -> MethodChoice:
    """The choice with every setting explicit, the budget's knob set by `Method.fit`."""
    inner = solved_choice(choice.on, architecture, None) if choice.on else None
    explicit = MethodChoice(name=choice.name, on=inner, **choice.settings)
    method, config = method_named(choice.name), config_of(explicit)
    if requested is not None:
        config = method.fit(outer_architecture(explicit, architecture), config, requested)
    return explicit.with_settings(config.model_dump(mode="json"))


def curve_points(steps: int) -> list[int]:
    """Steps after which the validation curve is measured: evenly spaced, the last one included.

    Ten of them, or fewer in a short run, which would otherwise spend most of its time on them.
    """
    points = min(10, max(4, steps // 15))
    return sorted({round(steps * k / points) for k in range(1, points + 1)} - {0})


def workload(spec: RunSpec, setting: Setting, params: Params) -> estimate.Workload:
    """The arithmetic of a resolved run, from the real lengths of a sample of its sentences."""
    train_set = setting.dataset.splits["train"]
    sample = train_set.take(range(min(SAMPLED, len(train_set))))
    lengths = encode(sample, tokenizer_of(setting.source), int(spec.train.max_length)).lengths
    padded = estimate.padded_lengths(lengths, spec.train.batch_size)
    judged = [len(setting.dataset.splits[name].labels) for name in ("validation", "test")]
    evaluated = CURVE_ITEMS * (len(curve_points(spec.train.steps)) + 1) + sum(judged)
    method = method_named(spec.method.name)
    config = config_of(spec.method)
    gradients = 0 if spec.method.on else method.dense_gradients(setting.architecture, config)
    return estimate.Workload(
        architecture=setting.architecture,
        trainable=params.peak + params.head,
        dense_gradients=gradients,
        differentiates=method.differentiates,
        tokens_per_step=float(padded.mean()) * spec.train.batch_size,
        longest=int(padded.max()),
        batch_size=spec.train.batch_size,
        steps=spec.train.steps,
        evaluated_tokens=evaluated * float(lengths.mean()),
        evaluated_at_once=max(estimate.largest_batch(lengths, count) for count in judged),
    )


def _count(
    method: type[Method], table: Architecture, config: MethodConfig, architecture: Architecture, requested: int | None
) -> Params:
    size = method.size(table, config)
    head = sum(p.size for p in architecture.head)
    return Params(
        requested=requested,
        method=size,
        head=head,
        total=size + head,
        model=sum(p.size for p in architecture.backbone),
        peak=method.peak(table, config),
    )


def _warnings(
    method: type[Method],
    table: Architecture,
    config: MethodConfig,
    params: Params,
    spec: RunSpec,
    dataset: Dataset,
) -> list[str]:
    found = method.warnings(table, config, spec.train.steps)
    if params.requested and params.method < 0.9 * params.requested:
        found.append(
            f"{method.title} reaches {params.method:,} of the {params.requested:,} parameters asked for: "
            "the most its settings allow on this model."
        )
    examples = len(dataset.splits["train"].labels)
    if spec.train.batch_size > examples:
        found.append(f"A batch of {spec.train.batch_size} is larger than the {examples:,} training examples.")
    if spec.dataset.source == "imdb" or dataset.length == "review":
        found.append("Reviews are four times as long as sentences: a step takes several times as long.")
    return found
