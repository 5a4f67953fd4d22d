"""The figures about nano-llama: a share of words, a perplexity below that of single tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.bench.language import perplexity, samples, words
from engine.prompting.measure import Speaker, load_speaker

needs_dictionary = pytest.importorskip("spellchecker")


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return load_speaker("nano-llama")


def test_words_are_looked_up_without_the_last_of_a_text() -> None:
    found = words(["the film doesn't xqzt work zzzzqq", "good plot"])
    assert (found["known"], found["all"]) == (5, 6)
    assert found["not"] == ["xqzt"]
    assert found["ci95"][0] < 5 / 6 < found["ci95"][1]


def test_scrambled_questions_are_no_words_it_should_know() -> None:
    found = words(["oncel = clone\nxqzt = plot\ngood film"])
    assert (found["known"], found["all"], found["share"]) == (3, 3, 1.0)
    assert found["share_with_questions"] == 3 / 5


@pytest.mark.slow
def test_it_reads_reviews_three_times_better_than_single_tokens_do(home: Path, speaker: Speaker) -> None:
    found = perplexity(speaker, count=20)
    assert found["unigram"] > 3 * found["model"]


def test_it_writes_words_and_the_same_ones_for_a_seed(speaker: Speaker) -> None:
    texts = samples(speaker, seed=0)
    assert len(texts) == 50
    assert samples(speaker, seed=0) == texts != samples(speaker, seed=1)
    assert words(texts)["share"] >= 0.9
