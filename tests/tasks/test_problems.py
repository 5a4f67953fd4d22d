"""Generated problems: right answers, the lecture's rotation, and what pretraining never shows."""

from __future__ import annotations

import numpy as np
import pytest

from engine.tasks import problems

WORDS = tuple(f"{a}{b}word" for a in "abcdefghij" for b in "klmnop")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_rotations_are_those_of_the_lecture() -> None:
    assert problems.rotated("casino", 1) == "asinoc"
    assert problems.rotated("froggy", 5) == "yfrogg"


def test_all_sums_once_and_right() -> None:
    found = {problem.question: int(problem.answer) for problem in problems.sums()}
    assert len(found) == 100
    assert all(sum(map(int, question.split(" + "))) == answer for question, answer in found.items())


@pytest.mark.parametrize(("rule", "answers"), [("sum", 11), ("difference", 5), ("larger", 8), ("second", 3)])
def test_a_number_rule_gives_its_answer(rule: str, answers: int) -> None:
    draw = problems.numbers(rule, "#", seen=True)
    drawn = [draw(generator) for generator in [rng()] for _ in range(2_000)]
    eights = [problem for problem in drawn if problem.question == "8 # 3"]
    assert eights, "8 and 3 are among the pairs of pretraining"
    assert {problem.answer for problem in eights} == {str(answers)}


@pytest.mark.parametrize("rule", problems.WORD_RULES)
def test_a_changed_word_has_the_letters_of_its_answer(rule: str) -> None:
    draw, generator = problems.words(rule, WORDS, seen=True), rng()
    for _ in range(50):
        problem = draw(generator)
        assert sorted(problem.question) == sorted(problem.answer)
        assert problem.answer in WORDS
    assert rule == "copy" or any(draw(generator).question != draw(generator).answer for _ in range(5))


def test_an_anagram_is_never_the_word_itself_and_has_one_answer() -> None:
    generator = rng()
    assert all(problems.shuffled("noon", generator) != "noon" for _ in range(50))
    assert problems.shuffled("aa", generator) == "aa"
    assert problems.unmistakable(["plot", "tops", "stop", "film"]) == ("plot", "film")


def test_pretraining_never_sees_what_is_held_out() -> None:
    generator = rng()
    for seen in (True, False):
        pairs = {problems.numbers("sum", "+", seen=seen)(generator).question for _ in range(2_000)}
        keys = {problems.pair_key(*map(int, question.split(" + "))) for question in pairs}
        assert {problems.held_out(key) for key in keys} == {not seen}
        words = {problems.words("copy", WORDS, seen=seen)(generator).answer for _ in range(2_000)}
        assert {problems.held_out(word) for word in words} == {not seen}


def test_both_orders_of_a_sum_are_held_out_together() -> None:
    assert problems.pair_key(3, 8) == problems.pair_key(8, 3)
    new = [problem.question for problem in problems.sums() if problems.is_new_sum(problem)]
    assert all(" + ".join(reversed(question.split(" + "))) in new for question in new)
    assert 5 <= len(new) <= 40


def test_the_vocabulary_is_of_frequent_words_of_middling_length() -> None:
    documents = [["The plot, the PLOT and the actors.", "A remarkable-looking plot!"]]
    assert problems.vocabulary(documents, least=3) == ("plot",)
    assert problems.vocabulary(documents, least=1) == ("actors", "looking", "plot")
