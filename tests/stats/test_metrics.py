"""Outcomes of a classifier, against counts made by hand and by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import log_loss

from engine.errors import DataError
from engine.stats.metrics import Outcomes, confusion_matrix


def outcomes() -> Outcomes:
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.95, 0.05]], dtype=np.float32)
    return Outcomes(labels, probabilities)


def test_accuracy_and_confusion() -> None:
    found = outcomes()
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.confusion().tolist() == [[1, 1], [1, 2]]
    assert found.confusion().tolist() == sklearn_confusion(found.labels, found.predicted).tolist()


def test_loss_is_the_cross_entropy() -> None:
    found = outcomes()
    assert found.loss == pytest.approx(log_loss(found.labels, found.probabilities), rel=1e-6)


def test_loss_stays_finite_when_the_right_class_has_probability_zero() -> None:
    found = Outcomes(np.array([0]), np.array([[0.0, 1.0]], dtype=np.float32))
    assert np.isfinite(found.loss)


def test_most_confident_are_the_surest_of_each_side() -> None:
    found = outcomes()
    assert found.most_confident(right=True).tolist() == [0, 2, 3]
    assert found.most_confident(right=False, count=1).tolist() == [4]
    assert found.rows([4]) == [{"item": 4, "label": 1, "predicted": 0, "probability": pytest.approx(0.95)}]


def test_nothing_wrong_gives_no_wrong_items() -> None:
    found = Outcomes(np.array([1]), np.array([[0.1, 0.9]], dtype=np.float32))
    assert found.most_confident(right=False).tolist() == []


def test_a_class_that_never_occurs_has_its_row() -> None:
    assert confusion_matrix([0, 1], [0, 0], 3).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="no items"):
        Outcomes(np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="answers of shape"):
        Outcomes(np.array([0, 1]), np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="classes from"):
        confusion_matrix([0, 2], [0, 0], 2)
