"""Generated problems: sums, hidden rules and scrambled words, one line each, such as ``3 + 4 = 7``.

The small language model reads such lines while it is pretrained, and is asked them later with a
few solved ones in front. What it may be asked is kept out of what it reads: some sums and some
words never occur in the problems of its pretraining. Torch-free.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SYMBOLS = "#@&%~?"
"""Signs whose meaning only the solved problems in front of a question tell."""
HELD_OUT = 5
"""One of so many sums and words is kept out of pretraining."""
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Problem:
    """A question and its one right answer."""

    question: str
    answer: str

    @property
    def line(self) -> str:
        """The solved problem."""
        return f"{self.question} = {self.answer}"


Draw = Callable[[np.random.Generator], Problem]

NUMBER_RULES: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: abs(a - b),
    "larger": max,
    "smaller": min,
    "first": lambda a, b: a,
    "second": lambda a, b: b,
}
"""What a hidden sign may mean."""
WORD_RULES: dict[str, Callable[[str, np.random.Generator], str]] = {
    "copy": lambda word, rng: word,
    "reversal": lambda word, rng: word[::-1],
    "rotation": lambda word, rng: rotated(word, int(rng.integers(1, len(word)))),
    "anagram": lambda word, rng: shuffled(word, rng),
}
"""How a word may be changed before it is asked for; ``rotation`` is the lecture's asinoc = casino."""


def rotated(word: str, places: int) -> str:
    """A word with its first letters moved to its end: casino by 1 is asinoc, froggy by 5 is yfrogg."""
    return word[places:] + word[:places]


def shuffled(word: str, rng: np.random.Generator) -> str:
    """The letters of a word in another order, at random; a word of one letter only stays as it is."""
    while len(set(word)) > 1:
        found = "".join(word[place] for place in rng.permutation(len(word)))
        if found != word:
            return found
    return word


def unmistakable(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """Words whose letters make no other word of the vocabulary: only of these an anagram has one right answer."""
    words = list(vocabulary)
    often = Counter("".join(sorted(word)) for word in words)
    return tuple(word for word in words if often["".join(sorted(word))] == 1)


def held_out(key: str) -> bool:
    """Whether a sum or word is kept out of pretraining, decided by its hash alone."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT == 0


def pair_key(a: int, b: int) -> str:
    """What decides whether a sum is held out: both orders of its terms together."""
    return f"{min(a, b)}+{max(a, b)}"


def sums() -> list[Problem]:
    """All 100 sums of two one-digit numbers."""
    return [Problem(f"{a} + {b}", str(a + b)) for a in range(10) for b in range(10)]


def is_new_sum(problem: Problem) -> bool:
    """Whether a sum from `sums` was kept out of pretraining."""
    a, b = problem.question.split(" + ")
    return held_out(pair_key(int(a), int(b)))


def numbers(rule: str, sign: str, *, seen: bool | None) -> Draw:
    """Problems of two one-digit numbers under one rule.

    Args:
        rule: of `NUMBER_RULES`.
        sign: between the two numbers.
        seen: draw from the pairs of pretraining, or from those kept out; None for all pairs.
    """
    pairs = _pairs_of(seen)

    def draw(rng: np.random.Generator) -> Problem:
        a, b = pairs[rng.integers(len(pairs))]
        return Problem(f"{a} {sign} {b}", str(NUMBER_RULES[rule](a, b)))

    return draw


@functools.cache
def _pairs_of(seen: bool | None) -> tuple[tuple[int, int], ...]:
    return tuple((a, b) for a in range(10) for b in range(10) if held_out(pair_key(a, b)) is not seen)


@functools.cache
def _words_of(vocabulary: tuple[str, ...], seen: bool) -> tuple[str, ...]:
    return tuple(word for word in vocabulary if held_out(word) != seen)


def words(rule: str, vocabulary: tuple[str, ...], *, seen: bool) -> Draw:
    """Problems of changed words under one rule.

    Args:
        rule: of `WORD_RULES`.
        vocabulary: the words.
        seen: draw from the words of pretraining, or from those kept out.
    """
    own = _words_of(vocabulary, seen)

    def draw(rng: np.random.Generator) -> Problem:
        word = own[rng.integers(len(own))]
        return Problem(WORD_RULES[rule](word, rng), word)

    return draw


def document(draw: Draw, lines: int, rng: np.random.Generator) -> str:
    """Solved problems of one kind, one a line."""
    return "\n".join(draw(rng).line for _ in range(lines))


def vocabulary(documents: Iterable[Sequence[str]], least: int = 20) -> tuple[str, ...]:
    """Words of four to nine letters that occur at least so often, in alphabetical order."""
    counts = Counter(
        word for document in documents for sentence in document for word in _WORD.findall(sentence.lower())
    )
    return tuple(sorted(word for word, count in counts.items() if count >= least and 4 <= len(word) <= 9))
