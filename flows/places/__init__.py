"""The places where points of a sweep run: as processes of this machine, as Slurm jobs, or in a Prefect work pool.

Imports `flows.sweeps`, `flows.building`, `flows.entry` and `tasks`.
"""
