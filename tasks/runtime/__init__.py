"""How a stage runs: its command line, its checks and locks, its ranks, and its output put in place whole.

Imports `tasks.stages`, `tasks.tracking`, `tasks.params`, `tasks.computing` and `tasks.system`.
"""
