"""Looks whether outputs and training states are what their manifests say."""

from collections.abc import Iterator
from pathlib import Path

from flows.doctor.finding import Finding, fine, shown, workspaces
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.stages import stages_of
from tasks.system.errors import UserError
from tasks.system.manifest import MANIFEST, damaged_files
from tasks.system.paths import OUTPUTS, RESULTS, STATE

GENERATIONS = f"{STATE}/state/*/*/step-*"
"""The folders of training states in a workspace."""


def look(project: Path, thorough: bool = False) -> Iterator[Finding]:
    """A line for each folder that does not fit its manifest, and one that counts those that do.

    Sizes are compared, or with `thorough` all bytes.
    """
    whole = 0
    for workspace in workspaces(project):
        for folder in sorted(output_folders(workspace)):
            if (damaged := next(damaged_files(folder, thorough), None)) is None:
                whole += 1
            else:
                what, where = shown(damaged, project), shown(folder, project)
                yield Finding(
                    f"{what} {fault_of(damaged)}: delete {where}, and run the same command, which makes it anew"
                )
        for folder in sorted(workspace.glob(GENERATIONS)):
            if (damaged := next(damaged_files(folder, thorough), None)) is None:
                whole += 1
            else:
                yield Finding(
                    f"{shown(damaged, project)} {fault_of(damaged)}: delete {shown(folder, project)}, and the training "
                    "goes on from the state before it"
                )
    how = "by all of their bytes" if thorough else "by their sizes (--thorough reads their bytes)"
    yield fine(f"{whole} folders of outputs and training states are whole, {how}")


def fault_of(path: Path) -> str:
    """What is wrong with a file that does not fit its manifest."""
    if not path.exists():
        return "is missing"
    return "is no manifest" if path.name == MANIFEST else f"does not match its {MANIFEST}"


def output_folders(workspace: Path) -> set[Path]:
    """The folders of a workspace that have a manifest, and the outputs of stages, which ought to have one."""
    folders = {path.parent for top in (OUTPUTS, RESULTS) for path in (workspace / top).rglob(MANIFEST)}
    try:
        stages = stages_of(load_params(workspace / PARAMS_FILE)).values()
    except UserError:  # the look at params says it
        return folders
    outputs = {workspace / stage.output for stage in stages if stage.output != RESULTS}
    return folders | {path for path in outputs if path.is_dir()}
