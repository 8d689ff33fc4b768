"""Looks at `params.yaml`: whether it can be read, and whether its paths lead to what they should."""

from collections.abc import Iterator
from pathlib import Path

from flows.building.user_file_checks import refuse_wrong_paths
from flows.doctor.finding import Finding, fine, shown, workspaces
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.stages import stages_of
from tasks.system.errors import UserError


def look(project: Path) -> Iterator[Finding]:
    """The faults of each workspace's params, and of the paths in the project's own."""
    wrong = False
    for workspace in workspaces(project):
        try:
            params = load_params(workspace / PARAMS_FILE)
            if workspace == project:
                refuse_wrong_paths([(list(stages_of(params).values()), params)])
        except UserError as error:
            wrong = True
            yield Finding(str(error))
    if not wrong:
        yield fine(f"{shown(project / PARAMS_FILE, project)} can be read, and its paths lead to what they should")
