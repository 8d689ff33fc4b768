"""Sweeps: many runs of the pipeline that differ in some params, from the sweep's file to its table and plot.

Imports `flows.building`, `flows.entry` and `tasks`. A sweep runs its points in a place: `place_interface.py` defines
what every place can do, and `flows.places` holds the places. `point_program.py`, which a point's process runs, imports
`flows.full_pipeline`.
"""
