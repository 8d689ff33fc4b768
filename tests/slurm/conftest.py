"""A Slurm for the tests of a file."""

from collections.abc import Iterator

import pytest
from cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes with one fake GPU each."""
    assert not missing_programs()
    started = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.up()
        yield started
    finally:
        started.down()
