"""Runs a stage: its command line, its checks and locks, its ranks, and the move of its finished output into place.

The modules here import `tasks.stages`, `tasks.tracking`, `tasks.params`, `tasks.computing` and `tasks.system`, and the
choice of kernels.
"""
