"""Where the locks lie that running flows, stages, sweeps and points hold, and which workspaces a project has."""

from tasks.system.paths import COPIES, STATE

FLOW_LOCK = STATE / "flow.lock"
LOCKS = (str(FLOW_LOCK), f"{STATE}/locks/*", f"{STATE}/sweeps/*.lock", f"{STATE}/point/lock")
"""The locks that flow runs, stages, sweeps and points hold in a workspace while they run, as patterns."""
WORKSPACES = ("", f"{COPIES}/*/", f"{COPIES}/points/*/")
"""The project itself, its copies, and the points of sweeps, as patterns below the project."""
