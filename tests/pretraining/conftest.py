"""A few film sentences as documents."""

from __future__ import annotations

import pytest

from tests.small import sentences


@pytest.fixture(scope="package")
def documents() -> list[tuple[str, ...]]:
    texts = [text for text, _ in sentences(240)]
    return [tuple(texts[start : start + 4]) for start in range(0, 240, 4)]
