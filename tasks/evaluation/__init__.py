"""GenEval: prompts, drawing, detectors, the scoring rules, the judge, best of N, and scores with intervals.

Imports `tasks.training`, `tasks.data` and the rooms that these import.
"""
