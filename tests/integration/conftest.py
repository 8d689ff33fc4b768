"""Tests of this folder start servers, ranks or whole pipelines: they are marked so, and may take longer than others."""

from pathlib import Path

import pytest

LIMIT_SECONDS = 3600
"""Guards against a test that hangs. The longest takes three minutes on a quiet machine of two cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the items of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(LIMIT_SECONDS))
