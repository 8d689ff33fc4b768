"""Where the points of a sweep run: as processes of this machine, as jobs of Slurm, or in a work pool of Prefect.

Imports `flows.sweeps`, `flows.building` and `tasks`.
"""
