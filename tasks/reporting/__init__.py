"""The report: its numbers, figures, pictures and page.

Imports `tasks.evaluation`, `tasks.stages` and the rooms that these import.
"""
