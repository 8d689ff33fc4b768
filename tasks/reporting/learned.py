"""Whether a run was long enough for its scores to mean anything. The end of a flow asks it too, without torch."""

from collections.abc import Mapping
from typing import Any


def has_learned(summary: Mapping[str, Any]) -> bool:
    """Whether the grown model's pictures score better than decoded noise: their 95 % intervals do not meet."""
    grown = next(model for model in summary["models"] if model["name"] == "grown")
    return grown["score"]["low"] > summary["controls"]["noise"]["high"]
