"""What is measured inside the model while it trains, and when: small arrays for the inside views.

``mask``, ``rank`` and ``change`` each turn a method's state into one frame; ``schedule`` decides
at which steps frames are taken and what they may cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.models.architecture import Parameter


def describe(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """Rows as plain data, for the meta values ``layout``, ``matrices`` and ``rank_matrices``."""
    return [
        {
            "name": row.name,
            "layer": row.layer,
            "role": row.role,
            "part": row.part,
            "shape": list(row.shape),
            "eligible": row.eligible,
        }
        for row in parameters
    ]
