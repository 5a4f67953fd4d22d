"""What is asked in context: shots that help and never give the answer away."""

from __future__ import annotations

import pytest

from engine.errors import SpecError, UnknownName
from engine.prompting.tasks import MOST_SHOTS, TASKS, Episode, check_shots, task_named
from engine.tasks import problems
from engine.tasks.problems import Problem
from engine.tasks.reviews import load_reviews


@pytest.fixture(scope="module")
def episodes() -> dict[str, list[Episode]]:
    return {name: task.episodes(60) for name, task in TASKS.items()}


@pytest.mark.parametrize("task", TASKS)
def test_the_question_is_never_among_its_shots(task: str, episodes: dict[str, list[Episode]]) -> None:
    for episode in episodes[task]:
        assert len(episode.shots) == MOST_SHOTS
        questions = [shot.question for shot in episode.shots]
        assert episode.question.question not in questions
        assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_questions_are_asked_each_time(task: str, episodes: dict[str, list[Episode]]) -> None:
    assert TASKS[task].episodes(60) == episodes[task]


def test_more_shots_only_add_in_front(episodes: dict[str, list[Episode]]) -> None:
    episode = episodes["sums"][34]
    assert episode.question == Problem("3 + 4", "7")
    assert episode.prompt(0) == "3 + 4 ="
    assert episode.prompt(2) == f"{episode.shots[0].line}\n{episode.shots[1].line}\n3 + 4 ="


def test_all_sums_are_asked_without_their_mirror_image(episodes: dict[str, list[Episode]]) -> None:
    assert len(episodes["sums"]) == 100
    for episode in episodes["sums"]:
        mirrored = " + ".join(reversed(episode.question.question.split(" + ")))
        assert mirrored not in [shot.question for shot in episode.shots]
    assert TASKS["sums"].naive(episodes["sums"]) == (0.1, "always the same answer")


def test_hidden_rules_are_one_per_question_and_differ(episodes: dict[str, list[Episode]]) -> None:
    signs = set()
    for episode in episodes["hidden"]:
        own = {problem.question.split()[1] for problem in (*episode.shots, episode.question)}
        assert len(own) == 1
        signs |= own
    assert len(signs) > 3


def test_a_hidden_rule_is_measured_against_the_best_fixed_one(episodes: dict[str, list[Episode]]) -> None:
    """Who always names the larger number is right far more often than who always says the same."""
    share, way = TASKS["hidden"].naive(episodes["hidden"])
    assert way == "the best fixed rule"
    same, _ = TASKS["sums"].naive(episodes["hidden"])
    assert same < share < 0.6


def test_asked_words_were_kept_out_of_pretraining(episodes: dict[str, list[Episode]]) -> None:
    for task in ("copy", "reversal", "rotation", "anagram"):
        assert all(problems.held_out(episode.question.answer) for episode in episodes[task])
        assert not any(problems.held_out(shot.answer) for episode in episodes[task] for shot in episode.shots)


def test_sentiment_asks_test_sentences_half_each_with_training_shots(episodes: dict[str, list[Episode]]) -> None:
    splits = load_reviews("rotten_tomatoes").splits
    asked = episodes["sentiment"]
    assert {episode.question.question for episode in asked} <= set(splits["test"].texts)
    assert {shot.question for episode in asked for shot in episode.shots} <= set(splits["train"].texts)
    assert TASKS["sentiment"].naive(asked)[0] == 0.5


@pytest.mark.parametrize("shots", [[], [-1], [0, MOST_SHOTS + 1]])
def test_numbers_of_shots_out_of_bounds(shots: list[int]) -> None:
    with pytest.raises(SpecError, match="numbers of shots"):
        check_shots(shots)


def test_names_and_numbers_in_order() -> None:
    assert check_shots([4, 0, 4]) == (0, 4)
    with pytest.raises(UnknownName, match="Did you mean 'rotation'"):
        task_named("rotations")
