"""What an experiment will cost before it is run: parameters, memory, FLOPs, GPU-hours and disk.

Imports `tasks.evaluation`, `tasks.training` and the rooms that these import.
"""
