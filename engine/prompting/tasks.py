"""What a language model is asked in context: questions with solved ones to put in front. Torch-free."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import SpecError, UnknownName
from engine.tasks import problems
from engine.tasks.problems import Draw, Problem
from engine.tasks.reviews import load_reviews

MOST_SHOTS = 16
SEED = 20_251


@dataclass(frozen=True)
class Episode:
    """One question with the solved ones that may stand in front of it.

    Attributes:
        shots: the same ones come first however many are used, so that more shots only add.
        question: what is asked.
        fresh: whether the question is of a kind kept out of nano-llama's pretraining.
    """

    shots: tuple[Problem, ...]
    question: Problem
    fresh: bool = False

    def prompt(self, shots: int) -> str:
        """The text that the model continues; its first line break ends the answer."""
        return "".join(f"{shot.line}\n" for shot in self.shots[:shots]) + f"{self.question.question} ="


@dataclass(frozen=True)
class PromptTask:
    """A kind of question.

    Attributes:
        id, title, description: for specs and people.
        episodes: draws so many; a task may have a number of its own.
        choices: the possible answers where they are few; else the model writes its answer freely.
        naive: share right of who never looks at the shots, and in words what that is.
    """

    id: str
    title: str
    description: str
    episodes: Callable[[int], list[Episode]]
    choices: tuple[str, ...] = ()
    naive: Callable[[Sequence[Episode]], tuple[float, str]] = lambda episodes: _always_the_same(episodes)


def _always_the_same(episodes: Sequence[Episode]) -> tuple[float, str]:
    """The most frequent answer."""
    most = max(Counter(episode.question.answer for episode in episodes).values())
    return most / len(episodes), "always the same answer"


def _best_fixed_rule(episodes: Sequence[Episode]) -> tuple[float, str]:
    """One rule for all questions, the luckiest: far above the most frequent answer."""
    right: Counter[str] = Counter()
    for episode in episodes:
        a, _, b = episode.question.question.split()
        right.update(
            name for name, rule in problems.NUMBER_RULES.items() if str(rule(int(a), int(b))) == episode.question.answer
        )
    return right.most_common(1)[0][1] / len(episodes), "the best fixed rule"


def task_named(name: str) -> PromptTask:
    """One task.

    Raises:
        UnknownName: with the near names.
    """
    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    return TASKS[name]


def check_shots(shots: Sequence[int]) -> tuple[int, ...]:
    """Numbers of shots in ascending order, each once.

    Raises:
        SpecError: for none, or one out of bounds.
    """
    wanted = tuple(sorted(set(shots)))
    if not wanted or wanted[0] < 0 or wanted[-1] > MOST_SHOTS:
        raise SpecError(f"The numbers of shots are {list(shots)}.", f"Give some from 0 to {MOST_SHOTS}.")
    return wanted


def _rng(task: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([SEED, *task.encode()]))


def _shots(draw: Draw, question: Problem, rng: np.random.Generator) -> tuple[Problem, ...]:
    """Different solved problems, none of them the question itself."""
    found: dict[str, Problem] = {}
    while len(found) < MOST_SHOTS:
        shot = draw(rng)
        if shot.question != question.question:
            found.setdefault(shot.question, shot)
    return tuple(found.values())


def _sums(count: int) -> list[Episode]:
    """Each of the 100 sums once; no shot has the same two terms."""
    rng, every = _rng("sums"), problems.sums()
    episodes = []
    for question in every:
        mirrored = {question.question, " + ".join(reversed(question.question.split(" + ")))}
        others = [problem for problem in every if problem.question not in mirrored]
        shots = tuple(others[place] for place in rng.permutation(len(others))[:MOST_SHOTS])
        episodes.append(Episode(shots, question, problems.is_new_sum(question)))
    return episodes


def _hidden(count: int) -> list[Episode]:
    rng = _rng("hidden")
    episodes = []
    for _ in range(count):
        rule, sign = str(rng.choice(list(problems.NUMBER_RULES))), str(rng.choice(list(problems.SYMBOLS)))
        question = problems.numbers(rule, sign, seen=None)(rng)
        a, _, b = question.question.split()
        fresh = problems.held_out(problems.pair_key(int(a), int(b)))
        episodes.append(Episode(_shots(problems.numbers(rule, sign, seen=True), question, rng), question, fresh))
    return episodes


@functools.cache
def _words() -> tuple[str, ...]:
    """The words of the reviews' training texts."""
    texts = (text for name in ("rotten_tomatoes", "imdb") for text in load_reviews(name).splits["train"].texts)
    return problems.vocabulary([text] for text in texts)


def _changed(rule: str) -> Callable[[int], list[Episode]]:
    def episodes(count: int) -> list[Episode]:
        rng = _rng(rule)
        # Rotations and reversals are anagrams, too: asked are words that no other one can be taken for.
        ask = problems.words(rule, problems.unmistakable(_words()), seen=False)
        show = problems.words(rule, _words(), seen=True)
        questions = [ask(rng) for _ in range(count)]
        return [Episode(_shots(show, question, rng), question, fresh=True) for question in questions]

    return episodes


def _sentiment(count: int) -> list[Episode]:
    """Sentences of the test split, shots from training; as many of either class as can be."""
    rng, dataset = _rng("sentiment"), load_reviews("rotten_tomatoes")
    train, test = dataset.splits["train"], dataset.splits["test"]

    def draw(rng: np.random.Generator) -> Problem:
        place = rng.integers(len(train))
        return Problem(train.texts[place], dataset.labels[train.labels[place]])

    by_class = [np.flatnonzero(test.labels == number) for number in range(len(dataset.labels))]
    chosen = [place for own in by_class for place in rng.permutation(own)[: count // len(by_class)]]
    questions = [Problem(test.texts[place], dataset.labels[test.labels[place]]) for place in chosen]
    return [Episode(_shots(draw, question, rng), question, fresh=True) for question in questions]


TASKS: dict[str, PromptTask] = {
    task.id: task
    for task in (
        PromptTask("sums", "Sums", "All 100 sums of two one-digit numbers, as in 3 + 4 = 7.", _sums),
        PromptTask(
            "hidden",
            "Hidden rule",
            "Two numbers joined by a sign whose meaning only the solved lines tell: in one question 3 # 4 = 7, in "
            "the next 3 # 4 = 4. Without shots it can only be guessed.",
            _hidden,
            naive=_best_fixed_rule,
        ),
        PromptTask("copy", "Copy a word", "casino = casino.", _changed("copy")),
        PromptTask("reversal", "Reversed words", "onisac = casino.", _changed("reversal")),
        PromptTask("rotation", "Rotated words", "asinoc = casino, yfrogg = froggy.", _changed("rotation")),
        PromptTask("anagram", "Anagrams", "nsoica = casino: letters in any order.", _changed("anagram")),
        PromptTask(
            "sentiment",
            "Sentiment",
            "Sentences of Rotten Tomatoes' test split; positive or negative, whichever the model finds more likely.",
            _sentiment,
            ("negative", "positive"),
        ),
    )
}
"""All tasks by id."""
