"""The recipes on a few sentences: a folder that loads, a stopped run that goes on as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from engine.errors import StoreError, UnknownName
from engine.models.catalogue import resolve_model
from engine.models.loading import load_classifier, load_language_model
from engine.models.tokenizer import tokenizer_of
from engine.pretraining import loop, make
from engine.pretraining.nano_llama import problem_document, train_tokenizer
from engine.pretraining.sequences import batches, encode_documents

KINDS = {"nano-bert": AutoModelForMaskedLM, "nano-llama": AutoModelForCausalLM}
Made = Callable[..., dict[str, Any]]


@pytest.fixture
def made(documents: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> Made:
    """Makes a model from the few sentences."""

    def call(name: str, to: Path, work: Path, steps: int = 3) -> dict[str, Any]:
        recipe = make.RECIPES[name]

        def objective(*args: Any) -> Any:
            return recipe.objective(*args, documents=documents)

        monkeypatch.setitem(make.RECIPES, name, make.Recipe(objective, recipe.schedule, 1_024))
        try:
            return make.make(name, to, work, device="cpu", seed=0, steps=steps, say=lambda line: None)
        finally:
            monkeypatch.setitem(make.RECIPES, name, recipe)

    return call


@pytest.mark.parametrize("name", KINDS)
def test_a_made_folder_loads_everywhere(name: str, made: Made, home: Path, tmp_path: Path) -> None:
    facts = made(name, tmp_path / name, tmp_path / "work")
    source = resolve_model(str(tmp_path / name))
    model = load_classifier(source, ("bad", "good"), head_seed=0, init_seed=0, dropout=0.0)
    ids = torch.tensor([tokenizer_of(source).encode("a bright film").ids])
    assert model(input_ids=ids).logits.shape == (1, 2)
    library = AutoTokenizer.from_pretrained(tmp_path / name, local_files_only=True)
    assert library("a bright film").input_ids == ids[0].tolist()
    whole, report = KINDS[name].from_pretrained(tmp_path / name, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.isfinite(whole(input_ids=ids).logits).all()
    card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
    assert f"{facts['parameters']:,}" in card
    assert "{" not in card
    if name == "nano-llama":
        load_language_model(source)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_stopped_and_called_again_it_ends_at_the_same_weights(
    name: str, made: Made, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = made(name, tmp_path / "straight", tmp_path / "one", steps=4)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    class Killed(Exception):
        pass

    save = loop._save

    def save_and_die(path: Path, model: Any, optimizer: Any, step: int, *rest: Any) -> None:
        save(path, model, optimizer, step, *rest)
        if step == 2:
            raise Killed

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(Killed):
        made(name, tmp_path / "resumed", tmp_path / "two", steps=4)
    monkeypatch.setattr(loop, "_save", save)
    resumed = made(name, tmp_path / "resumed", tmp_path / "two", steps=4)
    assert resumed["held_out"] == straight["held_out"]
    one, two = (load_file(tmp_path / part / "model.safetensors") for part in ("straight", "resumed"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_other_settings_start_anew_and_leave_what_was_there(
    made: Made, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("nano-llama", tmp_path / "first", tmp_path / "work", steps=2)
    monkeypatch.setattr(loop, "SAY_SECONDS", 1e9)
    facts = made("nano-llama", tmp_path / "second", tmp_path / "work", steps=3)
    assert [entry["step"] for entry in facts["history"]] == [3], "no step was taken over"
    assert len(list((tmp_path / "work").glob("checkpoint-*.pt"))) == 2


def test_the_teachers_states_are_removed_once_the_model_is_made(made: Made, home: Path, tmp_path: Path) -> None:
    facts = made("nano-bert", tmp_path / "to", tmp_path / "work", steps=1)
    assert not list((tmp_path / "work").glob("teacher-*"))
    assert 0 < facts["tokens"] <= 1_024
    assert facts["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_it_learns(made: Made, home: Path, tmp_path: Path) -> None:
    short, long = (made("nano-llama", tmp_path / "to", tmp_path / str(n), steps=n) for n in (1, 30))
    assert long["held_out"]["reviews"] < short["held_out"]["reviews"] - 1


@pytest.mark.parametrize("wrong", ["to", "work"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_trained(
    made: Made, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, place: str
) -> None:
    monkeypatch.setattr(make, "pretrain", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "file").write_text("")
    folders = {"to": tmp_path / "to", "work": tmp_path / "work"} | {wrong: tmp_path / place}
    with pytest.raises(StoreError, match=f"{place} cannot be written"):
        made("nano-bert", **folders)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="nano-bert"):
        make.make("nano-bart", tmp_path, tmp_path, device="cpu", seed=0, steps=1, say=print)


def test_every_epoch_reads_all_once_and_pads_little() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    order = batches(lengths, 600, seed=0)
    read: list[int] = []
    padded = real = 0
    while len(read) < 500:
        part = next(order)
        assert lengths[part].max() * len(part) <= 600
        padded += lengths[part].max() * len(part)
        real += lengths[part].sum()
        read += part.tolist()
    assert sorted(read) == list(range(500))
    assert real > 0.9 * padded
    assert next(order).tolist() != read[: len(next(batches(lengths, 600, seed=0)))]


def test_documents_become_whole_sentences(documents: list[tuple[str, ...]], home: Path) -> None:
    tokenizer = tokenizer_of(resolve_model("minilm-l6"))
    encoded = encode_documents(documents, tokenizer, seed=0)
    first = [encoded.input_ids[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]
    assert {(ids[0], ids[-1]) for ids in first} == {(101, 102)}
    read = " ".join(tokenizer.decode(ids) for ids in first)
    assert read == " ".join(sentence for document in documents for sentence in document)


def test_the_tokenizer_is_uncased_and_knows_digits() -> None:
    tokenizer = train_tokenizer(["the film was fine and the plot was too"] * 5)
    assert [token for token in tokenizer.encode("12 + 345").tokens if token.isdigit()] == list("12345")
    assert tokenizer.decode(tokenizer.encode("The FILM = 12\n3").ids) == "the film = 12\n3"


def test_problem_documents_are_lines_of_solved_problems() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(20):
        lines = problem_document(rng, ("casino", "froggy", "anagram")).split("\n")
        assert 4 <= len(lines) < 24
        assert all(" = " in line for line in lines)
