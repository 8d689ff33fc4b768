"""Sweeps: many runs of the pipeline that differ in some params, from the sweep's file to its table and plot.

Imports `flows.full_pipeline`, which each point runs, and the rooms that it imports. `place.py` says what a sweep asks
of a place, and `flows.places` answers.
"""
