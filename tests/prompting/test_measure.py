"""Prompts through a real decoder: padding changes nothing, long prompts count as wrong, encoders are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.errors import ModelError, SpecError
from engine.models.catalogue import resolve_model
from engine.pretraining.nano_llama import CONFIG, train_tokenizer
from engine.prompting.measure import Speaker, _log_likelihood, _until, _written, by_shots, encode_prompt, load_speaker
from engine.tasks import problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder with random weights, and a tokenizer that has seen sums and words."""
    to = tmp_path_factory.mktemp("decoder") / "small"
    torch.manual_seed(0)
    small = CONFIG | {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
    }
    tokenizer = train_tokenizer([*(problem.line for problem in problems.sums()), "positive negative film"] * 3)
    LlamaForCausalLM(LlamaConfig(**small)).save_pretrained(to)
    tokenizer.save(str(to / "tokenizer.json"))
    return to


@pytest.fixture
def speaker(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Speaker:
    monkeypatch.setenv("PEFTSCOPE_ROOTS", str(folder.parent))
    return load_speaker(str(folder))


def test_a_prompt_begins_with_the_start_token_and_has_no_end(speaker: Speaker) -> None:
    ids = encode_prompt(speaker, "3 + 4 =")
    assert ids[0] == 1
    assert 2 not in ids
    assert speaker.tokenizer.decode(ids) == "3 + 4 ="


def test_answers_do_not_depend_on_what_is_asked_beside(speaker: Speaker) -> None:
    prompts = [encode_prompt(speaker, text) for text in ("3 + 4 =", "1 + 1 = 2\n5 + 6 = 11\n3 + 4 =", "film")]
    assert _written(speaker, prompts) == [answer for prompt in prompts for answer in _written(speaker, [prompt])]
    together = _log_likelihood(speaker, prompts, "positive")
    apart = torch.cat([_log_likelihood(speaker, [prompt], "positive") for prompt in prompts])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


def test_log_likelihoods_are_those_of_a_plain_forward_pass(speaker: Speaker) -> None:
    prompt, own = encode_prompt(speaker, "film ="), speaker.tokenizer.encode(" negative", add_special_tokens=False).ids
    with torch.no_grad():
        logged = speaker.model(input_ids=torch.tensor([[*prompt, *own]])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) - 1 + len(own))
    expected = sum(float(logged[place, token]) for place, token in zip(places, own, strict=True))
    assert float(_log_likelihood(speaker, [prompt], "negative")) == pytest.approx(expected, abs=1e-4)


def test_every_number_of_shots_is_measured_on_the_same_questions(speaker: Speaker) -> None:
    told: list[tuple[int, int]] = []
    found = by_shots(speaker, "sums", [2, 0], progress=lambda done, total: told.append((done, total)))
    assert [(row["shots"], row["total"]) for row in found["rows"]] == [(0, 100), (2, 100)]
    assert told[-1] == (200, 200)
    for row in found["rows"]:
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert row["fresh_total"] == sum(map(problems.is_new_sum, problems.sums()))
    example = found["examples"][0]
    assert example["prompt"].count("\n") == 2
    assert set(example["answers"]) == {"0", "2"}
    assert found["provenance"]["weights"]["sha256"] == speaker.source.sha256


def test_prompts_longer_than_the_model_count_as_wrong(speaker: Speaker) -> None:
    (few, many) = by_shots(speaker, "sums", [0, 16])["rows"]
    assert few["cut"] == 0
    assert many["cut"] == 100
    assert many["correct"] == 0


def test_choices_are_scored_not_written(speaker: Speaker) -> None:
    found = by_shots(speaker, "sentiment", [0], questions=20)
    given = {example["answers"]["0"] for example in found["examples"]}
    assert given & {"positive", "negative"}
    assert given <= {"positive", "negative", None}, "None where a sentence is too long for so small a model"


def test_what_follows_an_end_is_no_part_of_an_answer() -> None:
    assert _until([5, 6, 2, 0, 0], [2, 9]) == [5, 6]
    assert _until([5, 6], [2]) == [5, 6]


def test_a_model_that_takes_too_long_is_given_up_with_advice(speaker: Speaker) -> None:
    with pytest.raises(SpecError, match="Ask fewer questions"):
        by_shots(speaker, "sums", [0, 2], seconds=0.0)


def test_an_encoder_is_refused_with_what_to_do(home: Path) -> None:
    with pytest.raises(ModelError, match="nano-llama"):
        load_speaker("minilm-l6")
    assert resolve_model("minilm-l6").family.kind == "encoder"


def test_too_few_questions_are_refused(speaker: Speaker) -> None:
    with pytest.raises(SpecError, match="10 to 1,000"):
        by_shots(speaker, "sums", [0], questions=3)
