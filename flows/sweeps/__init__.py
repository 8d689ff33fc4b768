"""Sweeps: many runs of the pipeline that differ in some parameters, wherever they run."""
