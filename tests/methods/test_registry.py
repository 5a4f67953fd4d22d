"""What holds for every registered method, whatever it does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from engine.errors import UnknownName
from engine.methods.contract import LearningRate, Method, Paper
from engine.methods.registry import config_of, method_named, methods
from engine.spec import MethodChoice, RunSpec, parse_spec
from tests.methods.driver import Training, batches_of, make
from tests.tiny import architecture_of, tiny_batch, tiny_bert, tiny_llama

NAMES = sorted(methods())
BASES = {"bert": tiny_bert, "llama": tiny_llama}


def test_the_registry_is_read_without_torch():
    blocked = ("torch", "transformers", "peft", "streamlit")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        "from engine.methods.registry import methods; print(*methods())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == NAMES


def test_an_unknown_method_suggests_a_known_one():
    with pytest.raises(UnknownName, match="Did you mean 'dora'"):
        method_named("dorra")


@pytest.mark.parametrize("name", NAMES)
def test_the_declaration_is_complete(name):
    cls = methods()[name]
    assert cls.title
    assert cls.family
    assert isinstance(cls.paper, Paper)
    assert cls.paper.url.startswith("https://")
    assert cls.formula
    assert cls.symbols
    assert isinstance(cls.lr, LearningRate)
    assert 0 < cls.lr.value < 1
    assert cls.lr.tuned
    assert cls.trainables.__func__ is not Method.trainables.__func__
    places = [cls.__doc__.find(heading) for heading in ("Why it exists", "What to watch", "When it fails")]
    assert -1 not in places
    assert places == sorted(places)
    assert set(cls.views) <= {
        "mask",
        "plane",
        "layers",
        "rank",
        "change",
        "bias",
        "path",
        "trials",
        "importance",
        "scores",
    }
    assert set(cls.export_formats) <= {"delta", "peft", "merged", "tensors"}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_what_it_is(name):
    properties = methods()[name].Config.model_json_schema()["properties"] if methods()[name].Config.model_fields else {}
    for setting, schema in properties.items():
        assert schema.get("title"), setting
        assert schema.get("description"), setting
        assert "default" in schema or methods()[name].Config.model_fields[setting].default_factory, setting


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_a_spec_file(name):
    config = config_of(MethodChoice(name=name))
    spec = RunSpec(method=MethodChoice(name=name, **config.model_dump(mode="json")))
    read = parse_spec(yaml.safe_load(spec.to_yaml()))
    assert config_of(read.method) == config
    assert read.hash() == spec.hash()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_was_declared(name, base):
    model = BASES[base]()
    method = make(methods()[name], model, steps=20)
    declared = {row.name: row.shape for row in method.trainables(method.context.architecture, method.config)}
    training = Training(method, model, score_batches=[tiny_batch(1, seed=n) for n in range(4)])
    trained = {name: tuple(parameter.shape) for name, parameter in method.parameters()}
    streamed = {name: tuple(parameter.shape) for name, parameter in method.streamed()}
    assert trained.items() <= declared.items()
    assert streamed.items() <= declared.items()
    tensors = dict(training.model.named_parameters())
    for name_, parameter in (*method.parameters(), *method.streamed()):
        assert tensors[name_] is parameter
        assert parameter.requires_grad
    if method.selection() is None:
        heads = {row.name for row in method.context.architecture.head}
        free = sum(p.numel() for name_, p in tensors.items() if p.requires_grad and not name_.endswith(tuple(heads)))
        peak = method.peak(method.context.architecture, method.config)
        assert free <= peak if method.kept() is not None else free == peak


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_size_counts_the_tensors(name, base):
    model = BASES[base]()
    cls = methods()[name]
    architecture, config = architecture_of(model), config_of(MethodChoice(name=name))
    held = sum(row.size for row in cls.trainables(architecture, config))
    assert 0 <= cls.size(architecture, config) <= cls.peak(architecture, config) <= held


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_losses(name, base):
    def losses() -> list[float]:
        model = BASES[base]()
        method = make(methods()[name], model, steps=6, seed=3)
        singles = [tiny_batch(1, seed=n) for n in range(4)]
        return Training(method, model, lr=methods()[name].lr.value, score_batches=singles).run(batches_of(6)).losses

    assert losses() == losses()


def test_what_trains_lora_in_chosen_layers_stands_with_lora() -> None:
    assert {methods()[name].family for name in ("rdp_lora", "ist", "lora")} == {"reparameterised"}
